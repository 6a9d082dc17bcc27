"""Leading principal components of one filter's maps by block Krylov iteration, compiled.

With X the centred maps (N, P) and C = XᵀX, one *pass* over the maps gives both Y = X Q and C Q = Xᵀ Y for a block Q
of directions: rows are read once, four at a time, and centred on the way, never copied. Pass by pass the blocks Q_0,
Q_1, … become an orthonormal basis of the Krylov space of C (block Lanczos with full reorthogonalisation; Musco and
Musco, "Randomized block Krylov methods", 2015). The eigenpairs (θ, s) of QᵀCQ give components v = Q s, scores Y s and
true residuals ‖C Q s − θ Q s‖ with no further pass.

The first block is a sketch of the maps' own rows: every sample is added, centred, to one of some groups, by a fixed
hash of its number. The same pass finds the mean and whether all numbers are finite.

A pass does 4 P flops for each sample and direction. Directions come in groups of ``GROUP``, which fill the vector
registers.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gmmcnn.mixture import vectors
from gmmcnn.mixture.vectors import (
    VECTOR_BYTES,
    aligned_empty,
    compiled_entry,
    fma,
    kernel,
    load,
    registers,
    splat,
    store,
    total,
)  # fmt: skip

GROUP = 4
"""Directions that a pass takes at once, and rows."""

SPARE_DIRECTIONS = 2
"""A block has at least so many directions more than components are wanted."""

MAX_PASSES = 14
FIRST_CHECK = 4
"""Passes after which convergence is tested for the first time."""

TOLERANCE = 3e-5
"""An eigenpair is taken when its residual is below this share of its distance to the other eigenvalues: that bounds
the angle between the direction found and the true one, hence the error of the scores relative to their scale."""

NEGLIGIBLE = 1e-7
"""An eigenvalue below this share of the largest is within the rounding of float32, and its direction of no
consequence."""

FOLD_VECTORS = 64

_HASH = np.uint64(0x9E3779B97F4A7C15)


def block_size(n_components: int) -> int:
    """Directions in a block: a whole number of groups."""
    return -(-(n_components + SPARE_DIRECTIONS) // GROUP) * GROUP


CONSTANT, FINITE, NOT_FINITE = range(3)


@kernel
def sketch(maps: Any, width: Any, n_groups: Any, sums: Any, mean: Any, basis: Any) -> Any:
    """Write the padded mean (P') and n_groups - 1 rows of the basis: centred sums of the samples of a group.

    Returns what the maps are: constant, finite, or not finite. ``sums`` (n_groups P) is scratch in float64.
    """
    n_samples, n_pixels = maps.shape
    counts = np.zeros(n_groups)
    sums[:] = 0.0
    varies = False
    for n in range(n_samples):
        group: Any = np.int64(((np.uint64(n) * _HASH) >> np.uint64(40)) % np.uint64(n_groups))
        counts[group] += 1
        row, target = maps[n], sums[group]
        for p in range(n_pixels):
            target[p] += row[p]
        if not varies:
            for p in range(n_pixels):
                varies |= row[p] != maps[0, p]
    checksum = 0.0
    for p in range(width):
        centre = 0.0
        if p < n_pixels:
            for g in range(n_groups):
                centre += sums[g, p]
            centre /= n_samples
        mean[p] = centre
        checksum += centre
        for g in range(n_groups - 1):
            basis[g * width + p] = sums[g, p] - counts[g] * centre if p < n_pixels else 0.0
    if not np.isfinite(checksum):
        return NOT_FINITE
    return FINITE if varies else CONSTANT


@kernel
def centred_pass(maps: Any, flat: Any, mean: Any, basis: Any, at: Any, group: Any, images: Any, scores: Any) -> None:
    """For ``GROUP`` directions, from row ``at`` of the basis: scores = X q and images = Xᵀ X q.

    ``maps`` (N, P) is also given ``flat``; ``mean`` (P'), ``basis`` and ``images`` (rows of P') are flat and padded
    to P' with zeros, the last row of vectors of ``maps`` is not. ``scores`` is flat with rows of N.
    """
    n_lanes = VECTOR_BYTES // flat.itemsize
    n_samples, n_pixels = maps.shape
    width = (n_pixels + n_lanes - 1) // n_lanes * n_lanes
    whole = n_pixels // n_lanes * n_lanes
    zero = splat(flat.dtype.type(0))
    dots = registers(zero)
    x = registers(zero)
    y = registers(zero)
    n_rows = len(group)
    for c in range(n_rows):
        for p in range(0, width, n_lanes):
            store(images, (at + c) * width + p, zero)
    tail = np.zeros(n_rows * n_lanes, dtype=flat.dtype)
    for n in range(0, n_samples, n_rows):
        for i in range(n_rows * n_rows):
            dots[i] = zero
        for r in range(n_rows):  # numbers beyond the last whole vector, and rows beyond the last, act as the mean
            for p in range(whole, n_pixels):
                tail[r * n_lanes + p - whole] = maps[min(n + r, n_samples - 1), p]
        for p in range(0, whole, n_lanes):
            centre = load(mean, p)
            for r in range(n_rows):
                x[r] = load(flat, min(n + r, n_samples - 1) * n_pixels + p) - centre
            for c in range(n_rows):
                q = load(basis, (at + c) * width + p)
                for r in range(n_rows):
                    dots[r * n_rows + c] = fma(x[r], q, dots[r * n_rows + c])
        if whole < width:
            centre = load(mean, whole)
            for c in range(n_rows):
                q = load(basis, (at + c) * width + whole)  # zero beyond the last pixel
                for r in range(n_rows):
                    dots[r * n_rows + c] = fma(load(tail, r * n_lanes) - centre, q, dots[r * n_rows + c])
        for r in range(n_rows):
            for c in range(n_rows):
                if n + r < n_samples:
                    value = flat.dtype.type(total(dots[r * n_rows + c]))
                    scores[(at + c) * n_samples + n + r] = value
                    y[r * n_rows + c] = splat(value)
                else:
                    y[r * n_rows + c] = zero
        for p in range(0, whole, n_lanes):
            centre = load(mean, p)
            for r in range(n_rows):
                x[r] = load(flat, min(n + r, n_samples - 1) * n_pixels + p) - centre
            for c in range(n_rows):
                image = load(images, (at + c) * width + p)
                for r in range(n_rows):
                    image = fma(x[r], y[r * n_rows + c], image)
                store(images, (at + c) * width + p, image)
        if whole < width:
            centre = load(mean, whole)
            for c in range(n_rows):
                image = load(images, (at + c) * width + whole)
                for r in range(n_rows):
                    image = fma(load(tail, r * n_lanes) - centre, y[r * n_rows + c], image)
                store(images, (at + c) * width + whole, image)


@kernel
def dot(a: Any, at_a: Any, b: Any, at_b: Any, width: Any) -> Any:
    """Inner product of two padded rows, in float64 over vectors."""
    n_lanes = VECTOR_BYTES // a.itemsize
    result = 0.0
    for first in range(0, width, FOLD_VECTORS * n_lanes):
        partial = splat(a.dtype.type(0))
        for p in range(first, min(first + FOLD_VECTORS * n_lanes, width), n_lanes):
            partial = fma(load(a, at_a + p), load(b, at_b + p), partial)
        result += total(partial)
    return result


@kernel
def add_multiple(target: Any, at: Any, factor: Any, source: Any, at_source: Any, width: Any) -> None:
    """``target += factor * source`` for padded rows."""
    n_lanes = VECTOR_BYTES // target.itemsize
    scale = splat(target.dtype.type(factor))
    for p in range(0, width, n_lanes):
        store(target, at + p, fma(scale, load(source, at_source + p), load(target, at + p)))


@kernel
def orthonormalise(basis: Any, first: Any, last: Any, width: Any) -> Any:
    """Make rows first … last of the basis orthonormal to each other and to all before; return how many do not vanish.

    Twice over by modified Gram-Schmidt. A row that lies in the span of those before it becomes zero.
    """
    alive = 0
    for row in range(first, last):
        at = row * width
        size = np.sqrt(dot(basis, at, basis, at, width))
        kept = size
        for _ in range(2):
            for other in range(row):
                overlap = dot(basis, other * width, basis, at, width)
                add_multiple(basis, at, -overlap, basis, other * width, width)
        kept = np.sqrt(dot(basis, at, basis, at, width))
        factor = 1.0 / kept if kept > 1e-5 * size and kept > 0 else 0.0
        alive += factor > 0
        for p in range(width):
            basis[at + p] *= factor
    return alive


@kernel
def leading_components(
    maps: Any, flat: Any, n_components: Any, n_directions: Any, group: Any, mean: Any, basis: Any, images: Any,
    krylov_scores: Any, scores: Any, variance: Any,
) -> Any:  # fmt: skip
    """Scores (N, d) and variances (d,) of one filter; return the residual relative to the largest eigenvalue.

    Negative where the passes did not suffice. ``mean`` holds the padded mean, the first rows of ``basis`` the first
    block.
    """
    n_lanes = VECTOR_BYTES // flat.itemsize
    width = (maps.shape[1] + n_lanes - 1) // n_lanes * n_lanes
    max_rows = MAX_PASSES * n_directions
    projected = np.zeros((max_rows, max_rows))
    n_rows = 0
    alive = orthonormalise(basis, 0, n_directions, width)
    for n_passes in range(1, MAX_PASSES + 1):
        first, n_rows = n_rows, n_rows + n_directions
        for at in range(first, n_rows, len(group)):
            centred_pass(maps, flat, mean, basis, at, group, images, krylov_scores)
        for j in range(first, n_rows):
            for i in range(j + 1):
                projected[i, j] = projected[j, i] = dot(basis, i * width, images, j * width, width)
        if n_passes >= FIRST_CHECK or alive == 0:
            values, vectors = np.linalg.eigh(projected[:n_rows, :n_rows])
            residual, converged = worst_residual(values, vectors, n_components, n_rows, width, basis, images)
            if converged or alive == 0:  # nothing new was left to find: the space is complete
                project(values, vectors, n_components, n_rows, width, basis, krylov_scores, scores, variance)
                return residual
        if n_passes < MAX_PASSES:
            for row in range(n_directions):
                for p in range(width):
                    basis[(n_rows + row) * width + p] = images[(first + row) * width + p]
            alive = orthonormalise(basis, n_rows, n_rows + n_directions, width)
    return -1.0


@kernel
def worst_residual(
    values: Any, vectors: Any, n_components: Any, n_rows: Any, width: Any, basis: Any, images: Any
) -> Any:
    """Largest residual of the wanted eigenpairs over the largest eigenvalue; whether all are small for their gaps."""
    largest = values[n_rows - 1]
    if largest <= 0:
        return 0.0, True
    worst, converged = 0.0, True
    difference = np.empty(width, dtype=basis.dtype)
    for j in range(n_components):
        e = n_rows - 1 - j
        if values[e] < NEGLIGIBLE * largest:
            continue
        for p in range(width):
            difference[p] = 0
        for i in range(n_rows):
            add_multiple(difference, 0, vectors[i, e], images, i * width, width)
            add_multiple(difference, 0, -vectors[i, e] * values[e], basis, i * width, width)
        residual = np.sqrt(dot(difference, 0, difference, 0, width))
        gap = values[e] - values[e - 1] if e > 0 else values[e]
        if e < n_rows - 1:
            gap = min(gap, values[e + 1] - values[e])
        converged &= residual <= TOLERANCE * gap
        worst = max(worst, residual / largest)
    return worst, converged


@kernel
def project(
    values: Any, vectors: Any, n_components: Any, n_rows: Any, width: Any, basis: Any, krylov_scores: Any, scores: Any,
    variance: Any,
) -> None:  # fmt: skip
    """Scores and variances of the leading eigenpairs, each with its component's largest entry positive."""
    n_samples = scores.shape[0]
    component = np.empty(width, dtype=basis.dtype)
    score = np.empty(n_samples)
    for j in range(n_components):
        e = n_rows - 1 - j
        for p in range(width):
            component[p] = 0
        score[:] = 0.0
        for i in range(n_rows):
            add_multiple(component, 0, vectors[i, e], basis, i * width, width)
            for n in range(n_samples):
                score[n] += vectors[i, e] * krylov_scores[i * n_samples + n]
        largest = 0
        for p in range(width):
            if abs(component[p]) > abs(component[largest]):
                largest = p
        sign = -1.0 if component[largest] < 0 else 1.0
        for n in range(n_samples):
            scores[n, j] = sign * score[n]
        variance[j] = max(values[e], 0.0) / (n_samples - 1)


def krylov_pca(
    maps: NDArray, n_components: int, scores: NDArray, variance: NDArray, residual: NDArray
) -> tuple[NDArray, NDArray]:
    """Fill in scores (F, N, d), variances (F, d) and residuals (F,) of maps (F, N, P), contiguous, d < min(N, P).

    Returns
    -------
    kind : (F,)
        ``CONSTANT``, ``FINITE`` or ``NOT_FINITE``.
    converged : (F,) bool
        Where this is False nothing is filled in.
    """
    n_filters, n_samples, n_pixels = maps.shape
    n_lanes = vectors.lanes(maps.dtype)
    width = -(-n_pixels // n_lanes) * n_lanes
    n_directions = block_size(n_components)
    rows = MAX_PASSES * n_directions
    kind = np.empty(n_filters, dtype=np.int64)
    decompose(
        maps, maps.reshape(n_filters, -1), n_components, n_directions, (0.0,) * GROUP, width, np.empty((n_directions +
        1, n_pixels)), aligned_empty(width, maps.dtype), aligned_empty(rows * width, maps.dtype), aligned_empty(rows *
        width, maps.dtype), aligned_empty(rows * n_samples, maps.dtype), scores, variance, residual, kind,
    )  # fmt: skip
    return kind, residual >= 0


@compiled_entry(vectors)
def decompose(
    maps: Any, flat: Any, n_components: Any, n_directions: Any, group: Any, width: Any, sums: Any, mean: Any, basis:
    Any, images: Any, krylov_scores: Any, scores: Any, variance: Any, residual: Any, kind: Any,
) -> None:  # fmt: skip
    """Leading components of every filter of a block."""
    for f in range(len(maps)):
        kind[f] = sketch(maps[f], width, n_directions + 1, sums, mean, basis)
        residual[f] = 0.0
        if kind[f] == FINITE:
            residual[f] = leading_components(
                maps[f], flat[f], n_components, n_directions, group, mean, basis, images, krylov_scores, scores[f],
                variance[f],
            )  # fmt: skip
