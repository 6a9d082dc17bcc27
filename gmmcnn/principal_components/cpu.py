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

from gmmcnn.hardware import vectors
from gmmcnn.hardware.compiled import compiled_entry, kernel
from gmmcnn.hardware.vectors import (  # fmt: skip
    aligned_empty,
    fma,
    lanes_of,
    load,
    load_first,
    prefetch,
    registers,
    splat,
    store,
    total,
    totals,
)

GROUP = 4
"""Directions that a pass takes at once, and rows."""

SPARE_DIRECTIONS = 2
"""A block has at least so many directions more than components are wanted."""

MAX_PASSES = 14
FIRST_CHECK = 5
"""Passes after which convergence is tested for the first time: few maps need fewer, and a test costs as much as a pass
over small maps."""

TOLERANCE = 3e-5
"""An eigenpair is taken when its residual is below this share of its distance to the other eigenvalues: that bounds
the angle between the direction found and the true one, hence the error of the scores relative to their scale."""

NEGLIGIBLE = 1e-7
"""An eigenvalue below this share of the largest is within the rounding of float32, and its direction of no
consequence."""

SMALLEST_SQUARE = 1e-14
"""Maps whose sketch has a smaller squared norm are not iterated on: at 1e-18 float32 begins to lose the squared norms
of the images of a block, which are of the fourth power of the maps."""

BYTES_PER_BLOCK = 2**18
"""Samples that a pass multiplies by the directions before it turns to their images: half of a second-level cache."""

CHUNK = 32
"""Vectors of pixels that a pass takes at once: directions and rows in hand fill half of a first-level cache."""

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
def centred_pass(flat: Any, n_samples: Any, n_pixels: Any, mean: Any, basis: Any, at: Any, group: Any, images: Any,
    scores: Any, tiles: Any) -> None:  # fmt: skip
    """For ``GROUP`` directions, from row ``at`` of the basis: scores = X q and images = Xᵀ X q.

    The maps (N, P) are ``flat``; ``mean`` (P'), ``basis`` and ``images`` (rows of P') are flat and padded to P' with
    zeros. ``scores`` is flat with rows of N. ``tiles`` is scratch for 2 GROUP P' numbers: the directions, then their
    images, the vectors of the four side by side.

    Samples come in blocks that stay in the second-level cache between the two products, pixels in chunks whose
    directions and images stay in the first-level cache while the block passes by.
    """
    n_lanes = lanes_of(flat)
    n_rows = len(group)
    n_vectors = (n_pixels + n_lanes - 1) // n_lanes
    width = n_vectors * n_lanes
    in_tile = n_rows * n_lanes
    of_images = n_vectors * in_tile
    for c in range(n_rows):
        for v in range(n_vectors):
            store(tiles, v * in_tile + c * n_lanes, load(basis, (at + c) * width + v * n_lanes))
            store(tiles, of_images + v * in_tile + c * n_lanes, splat(flat.dtype.type(0)))
    block = min(max(4, BYTES_PER_BLOCK // (n_rows * n_pixels * flat.itemsize)) * n_rows, n_samples)
    partial = np.empty((block + n_rows - 1) // n_rows * n_rows * in_tile, dtype=flat.dtype)
    for first in range(0, n_samples, block):
        last = min(first + block, n_samples)
        for v in range(0, n_vectors, CHUNK):
            for n in range(first, last, n_rows):
                add_products(flat, n_samples, n_pixels, n, mean, tiles, v, group, partial, (n - first) * in_tile)
        for n in range(first, last, n_rows):
            sum_products(partial, (n - first) * in_tile, group, scores, at * n_samples, n_samples, n)
        for v in range(0, n_vectors, CHUNK):
            for n in range(first, last, n_rows):
                add_images(
                    flat, n_samples, n_pixels, n, mean, tiles, of_images, v, group, partial, (n - first) * in_tile
                )
    for c in range(n_rows):
        for v in range(n_vectors):
            store(images, (at + c) * width + v * n_lanes, load(tiles, of_images + v * in_tile + c * n_lanes))


@kernel
def add_products(
    flat: Any, n_samples: Any, n_pixels: Any, n: Any, mean: Any, tiles: Any, v_first: Any, group: Any, partial: Any,
    at: Any,
) -> None:  # fmt: skip
    """Products of four rows and four directions over a chunk of pixels, lane by lane, added to those of chunks before.

    A row beyond the last acts as the last.
    """
    n_lanes = lanes_of(flat)
    n_rows = len(group)
    zero = splat(flat.dtype.type(0))
    products = registers(zero)
    x = registers(zero)
    for i in range(n_rows * n_rows):
        products[i] = load(partial, at + i * n_lanes) if v_first > 0 else zero
    for v in range(v_first, min(v_first + CHUNK, (n_pixels + n_lanes - 1) // n_lanes)):
        for r in range(n_rows):
            x[r] = centred(flat, min(n + r, n_samples - 1), n_pixels, v, mean)
            prefetch(flat, min(n + n_rows + r, n_samples - 1) * n_pixels + v * n_lanes)
        for c in range(n_rows):
            q = load(tiles, (v * n_rows + c) * n_lanes)
            for r in range(n_rows):
                products[c * n_rows + r] = fma(x[r], q, products[c * n_rows + r])
    for i in range(n_rows * n_rows):
        store(partial, at + i * n_lanes, products[i])


@kernel
def centred(flat: Any, n: Any, n_pixels: Any, v: Any, mean: Any) -> Any:
    """Vector v of row n less the mean; zero beyond the last pixel."""
    n_lanes = lanes_of(flat)
    first = v * n_lanes
    if first + n_lanes <= n_pixels:
        return load(flat, n * n_pixels + first) - load(mean, first)
    return load_first(flat, n * n_pixels + first, n_pixels - first) - load(mean, first)


@kernel
def sum_products(
    partial: Any, at: Any, group: Any, scores: Any, at_scores: Any, n_samples: Any, n: Any
) -> None:  # fmt: skip
    """Scores of four rows: sums over lanes, which take the place of the first products. Those beyond the last are 0."""
    n_lanes = lanes_of(partial)
    n_rows = len(group)
    products = registers(splat(partial.dtype.type(0)))
    for i in range(n_rows * n_rows):
        products[i] = load(partial, at + i * n_lanes)
    for i in range(0, n_rows * n_rows, n_lanes):
        store(partial, at + i, totals(products, i))
    for c in range(n_rows):
        for r in range(n_rows):
            if n + r < n_samples:
                scores[at_scores + c * n_samples + n + r] = partial[at + c * n_rows + r]
            else:
                partial[at + c * n_rows + r] = 0


@kernel
def add_images(
    flat: Any, n_samples: Any, n_pixels: Any, n: Any, mean: Any, tiles: Any, of_images: Any, v_first: Any, group: Any,
    row_scores: Any, at: Any,
) -> None:  # fmt: skip
    """Add four rows, times their scores, to the images of four directions, over a chunk of pixels."""
    n_lanes = lanes_of(flat)
    n_rows = len(group)
    x = registers(splat(flat.dtype.type(0)))
    y = registers(splat(flat.dtype.type(0)))
    for i in range(n_rows * n_rows):
        y[i] = splat(row_scores[at + i])
    for v in range(v_first, min(v_first + CHUNK, (n_pixels + n_lanes - 1) // n_lanes)):
        for r in range(n_rows):
            x[r] = centred(flat, min(n + r, n_samples - 1), n_pixels, v, mean)
            prefetch(flat, min(n + n_rows + r, n_samples - 1) * n_pixels + v * n_lanes)
        for c in range(n_rows):
            image = load(tiles, of_images + (v * n_rows + c) * n_lanes)
            for r in range(n_rows):
                image = fma(x[r], y[c * n_rows + r], image)
            store(tiles, of_images + (v * n_rows + c) * n_lanes, image)


@kernel
def dot(a: Any, at_a: Any, b: Any, at_b: Any, width: Any) -> Any:
    """Inner product of two padded rows, in float64 over vectors."""
    n_lanes = lanes_of(a)
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
    n_lanes = lanes_of(target)
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
    tiles: Any, krylov_scores: Any, scores: Any, variance: Any,
) -> Any:  # fmt: skip
    """Scores (N, d) and variances (d,) of one filter; return the residual relative to the largest eigenvalue.

    Negative where the passes did not suffice, or the maps are too small for them. ``mean`` holds the padded mean, the
    first rows of ``basis`` the first block.
    """
    n_lanes = lanes_of(flat)
    width = (maps.shape[1] + n_lanes - 1) // n_lanes * n_lanes
    max_rows = MAX_PASSES * n_directions
    projected = np.zeros((max_rows, max_rows))
    largest = 0.0
    for row in range(n_directions):
        largest = max(largest, dot(basis, row * width, basis, row * width, width))
    if largest < SMALLEST_SQUARE:
        return -1.0
    n_rows = 0
    alive = orthonormalise(basis, 0, n_directions, width)
    for n_passes in range(1, MAX_PASSES + 1):
        first, n_rows = n_rows, n_rows + n_directions
        for at in range(first, n_rows, len(group)):
            centred_pass(flat, maps.shape[0], maps.shape[1], mean, basis, at, group, images, krylov_scores, tiles)
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
        width, maps.dtype), aligned_empty(2 * GROUP * width, maps.dtype), aligned_empty(rows * n_samples, maps.dtype),
        scores, variance, residual, kind,
    )  # fmt: skip
    return kind, residual >= 0


@compiled_entry(vectors)
def decompose(
    maps: Any, flat: Any, n_components: Any, n_directions: Any, group: Any, width: Any, sums: Any, mean: Any, basis:
    Any, images: Any, tiles: Any, krylov_scores: Any, scores: Any, variance: Any, residual: Any, kind: Any,
) -> None:  # fmt: skip
    """Leading components of every filter of a block."""
    for f in range(len(maps)):
        kind[f] = sketch(maps[f], width, n_directions + 1, sums, mean, basis)
        residual[f] = 0.0
        if kind[f] == FINITE:
            residual[f] = leading_components(
                maps[f], flat[f], n_components, n_directions, group, mean, basis, images, tiles, krylov_scores,
                scores[f], variance[f],
            )  # fmt: skip
