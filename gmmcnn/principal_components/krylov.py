"""Leading principal components of one filter's maps by block Krylov iteration, compiled.

With X the centred maps (N, P) and C = XᵀX, one *pass* over the maps gives both Y = X Q and C Q = Xᵀ Y for a block Q
of directions: rows are read once, four at a time, and centred on the way, not copied. Pass by pass the blocks Q_0,
Q_1, … become an orthonormal basis of the Krylov space of C (block Lanczos with full reorthogonalisation; Musco and
Musco, "Randomized block Krylov methods", 2015). The eigenpairs (θ, s) of QᵀCQ give components v = Q s, scores Y s and
true residuals ‖C Q s − θ Q s‖ with no further pass.

The first block is a sketch of the maps' own rows: every sample is added, centred, to one of some groups, by a fixed
hash of its number. The same pass finds the mean and whether all numbers are finite.

Any scale and offset will do. Squares of the images are of the fourth power of the maps, and the mean is rounded before
it is subtracted: where the maps are so large or small, or so far from 0, that float32 would lose either, the passes
read a copy, centred in float64 and times the power of two that brings the sketch to about 1.

A pass does 4 P flops for each sample and direction. Directions come in groups of ``GROUP``, which fill the vector
registers.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gmmcnn.hardware import vectors
from gmmcnn.hardware.compiled import compiled_entry, inlined, kernel
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
    totals,
)
from gmmcnn.principal_components import orthogonal
from gmmcnn.principal_components.orthogonal import (  # fmt: skip
    CONSTANT,
    FINITE,
    GROUP,
    HASH,
    LARGEST_ENTRY,
    NOT_FINITE,
    SMALLEST_ENTRY,
    add_multiple,
    block_size,
    dot,
    orthonormalise,
    scale_exponent,
    worst_residual,
)

MAX_PASSES = 14
FIRST_CHECK = 5
"""Passes after which convergence is tested for the first time: few maps need fewer, and a test costs as much as a pass
over small maps."""

TOLERANCE = 3e-5
"""An eigenpair is taken when its residual is below this share of its distance to the other eigenvalues: that bounds
the angle between the direction found and the true one, hence the error of the scores relative to their scale."""

VANISHED = 1e-5
"""A new direction of which no more lies outside the space is rounding."""

MAX_RESIDUAL = 1e-4
"""Of eigenpairs of a complete space, relative to the largest eigenvalue: beyond it rounding has had the better."""

LARGEST_ROUNDING = 1e-6
"""Norm of what is lost when the mean is rounded, over that of a row of the sketch, up to which maps are read as they
are."""

BYTES_PER_BLOCK = 2**18
"""Samples that a pass multiplies by the directions before it turns to their images: half of a second-level cache."""

CHUNK = 32
"""Vectors of pixels that a pass takes at once: directions and rows in hand fill half of a first-level cache."""


class Maps(NamedTuple):
    """Maps of one filter, as a pass reads them. ``real`` is their dtype."""

    flat: NDArray
    """(N P,) real."""
    n_samples: int
    """N"""
    n_pixels: int
    """P"""
    mean: NDArray
    """(P',) real; P' is P rounded up to whole vectors, and what is beyond P is 0."""
    group: tuple[float, ...]
    """``GROUP`` zeros: their number is a constant to the compiler."""


class Krylov(NamedTuple):
    """What grows by n_directions rows a pass, up to ``MAX_PASSES`` times."""

    n_directions: int
    width: int
    """P'"""
    basis: NDArray
    """(rows P',) real: orthonormal directions Q, zero beyond P."""
    images: NDArray
    """(rows P',) real: C Q."""
    scores: NDArray
    """(rows N,) real: X Q."""
    tiles: NDArray
    """(2 GROUP P',) real, scratch: directions of a pass, then their images, the vectors of the four side by side."""
    sums: NDArray[np.float64]
    """(n_directions + 1, P) the sketch, then the mean."""
    mean: NDArray
    """(P',) real: see :class:`Maps`."""


@kernel
def sketch(
    maps: NDArray,  # (N, P) float32 or float64
    sums: NDArray[np.float64],  # (n_directions + 1, P) out
) -> tuple[int, float]:
    """Centred sums of the samples of a group, and the mean in the last row, which one group's sums make room for.

    Returns what the maps are (constant, finite, or not finite), and the largest entry of the sketch.
    """
    n_samples, n_pixels = maps.shape
    n_groups = len(sums)
    counts = np.zeros(n_groups)
    sums[:] = 0.0
    varies = False
    for n in range(n_samples):
        group = np.int64(((np.uint64(n) * HASH) >> np.uint64(40)) % np.uint64(n_groups))
        counts[group] += 1
        row, target = maps[n], sums[group]
        for p in range(n_pixels):
            target[p] += row[p]
        if not varies:
            for p in range(n_pixels):
                varies |= row[p] != maps[0, p]
    checksum, largest = 0.0, 0.0
    for p in range(n_pixels):
        centre = 0.0
        for g in range(n_groups):
            centre += sums[g, p]
        centre /= n_samples
        checksum += centre
        for g in range(n_groups - 1):
            sums[g, p] -= counts[g] * centre
            largest = max(largest, abs(sums[g, p]))
        sums[n_groups - 1, p] = centre
    if not np.isfinite(checksum + largest):
        return NOT_FINITE, largest
    return (FINITE if varies else CONSTANT), largest


@kernel
def can_be_read(
    sums: NDArray[np.float64],  # (n_directions + 1, P) see sketch
    largest: float,
    mean: NDArray,  # (P',) real, out: the mean, rounded
) -> bool:
    """Whether the passes may read the maps as they are."""
    n_pixels = sums.shape[1]
    mean[:] = 0
    lost, norm = 0.0, 0.0
    for p in range(n_pixels):
        mean[p] = sums[-1, p]
        lost += ((sums[-1, p] - np.float64(mean[p])) / largest) ** 2
        norm += (sums[0, p] / largest) ** 2
    return SMALLEST_ENTRY <= largest <= LARGEST_ENTRY and lost <= LARGEST_ROUNDING**2 * max(norm, 1.0)


@kernel
def centred_copy(
    maps: NDArray,  # (N, P) real
    mean: NDArray[np.float64],  # (P,)
    scale: float,
) -> NDArray:
    """Maps less their mean, times the scale, flat: (N P,) real."""
    n_samples, n_pixels = maps.shape
    copy = np.empty(n_samples * n_pixels, dtype=maps.dtype)
    for n in range(n_samples):
        for p in range(n_pixels):
            copy[n * n_pixels + p] = (maps[n, p] - mean[p]) * scale
    return copy


@kernel
def centred_pass(  # noqa: C901 - one nest of loops over tiles
    maps: Maps,
    krylov: Krylov,  # images and scores: out
    at: int,
) -> None:
    """For ``GROUP`` directions, from row ``at`` of the basis: scores = X q and images = Xᵀ X q.

    Samples come in blocks that stay in the second-level cache between the two products, pixels in chunks whose
    directions and images stay in the first-level cache while the block passes by.
    """
    flat, n_samples, n_pixels = maps.flat, maps.n_samples, maps.n_pixels
    basis, images, scores, tiles = krylov.basis, krylov.images, krylov.scores, krylov.tiles
    n_lanes = lanes_of(flat)
    n_rows = len(maps.group)
    n_vectors = (n_pixels + n_lanes - 1) // n_lanes
    width = n_vectors * n_lanes
    in_tile = n_rows * n_lanes
    images_at = n_vectors * in_tile
    for c in range(n_rows):
        for v in range(n_vectors):
            store(tiles, v * in_tile + c * n_lanes, load(basis, (at + c) * width + v * n_lanes))
            store(tiles, images_at + v * in_tile + c * n_lanes, splat(flat.dtype.type(0)))
    block = min(max(4, BYTES_PER_BLOCK // (n_rows * n_pixels * flat.itemsize)) * n_rows, n_samples)
    partial = np.empty((block + n_rows - 1) // n_rows * n_rows * in_tile, dtype=flat.dtype)
    for first in range(0, n_samples, block):
        last = min(first + block, n_samples)
        for v in range(0, n_vectors, CHUNK):
            for n in range(first, last, n_rows):
                project(maps, n, v, tiles, partial, (n - first) * in_tile)
        for n in range(first, last, n_rows):
            sum_products(maps, n, partial, (n - first) * in_tile, scores, at * n_samples)
        for v in range(0, n_vectors, CHUNK):
            for n in range(first, last, n_rows):
                backproject(maps, n, v, partial, (n - first) * in_tile, tiles, images_at)
    for c in range(n_rows):
        for v in range(n_vectors):
            store(images, (at + c) * width + v * n_lanes, load(tiles, images_at + v * in_tile + c * n_lanes))


@inlined
def project(
    maps: Maps,
    n: int,  # the first of GROUP rows; one beyond the last acts as the last
    first: int,  # vector of pixels where the chunk begins
    tiles: NDArray,  # see Krylov
    partial: NDArray,  # (blocks of rows, GROUP GROUP lanes) real
    at: int,  # where this block of rows begins
) -> None:
    """Products of four rows and four directions over a chunk of pixels, lane by lane, added to the earlier chunks'."""
    flat, n_samples, n_pixels, mean, group = maps
    n_lanes = lanes_of(flat)
    n_rows = len(group)
    zero = splat(flat.dtype.type(0))
    products = registers(zero)
    x = registers(zero)
    for i in range(n_rows * n_rows):
        products[i] = load(partial, at + i * n_lanes) if first > 0 else zero
    for v in range(first, min(first + CHUNK, (n_pixels + n_lanes - 1) // n_lanes)):
        for r in range(n_rows):
            x[r] = centred(flat, min(n + r, n_samples - 1), n_pixels, v, mean)
            prefetch(flat, min(n + n_rows + r, n_samples - 1) * n_pixels + v * n_lanes)
        for c in range(n_rows):
            q = load(tiles, (v * n_rows + c) * n_lanes)
            for r in range(n_rows):
                products[c * n_rows + r] = fma(x[r], q, products[c * n_rows + r])
    for i in range(n_rows * n_rows):
        store(partial, at + i * n_lanes, products[i])


@inlined
def centred(flat: NDArray, n: int, n_pixels: int, v: int, mean: NDArray) -> Any:
    """Vector v of row n less the mean; zero beyond the last pixel (see :class:`Maps`)."""
    n_lanes = lanes_of(flat)
    first = v * n_lanes
    if first + n_lanes <= n_pixels:
        return load(flat, n * n_pixels + first) - load(mean, first)
    return load_first(flat, n * n_pixels + first, n_pixels - first) - load(mean, first)


@inlined
def sum_products(
    maps: Maps,
    n: int,
    partial: NDArray,  # see project
    at: int,
    scores: NDArray,  # (rows N,) real, out
    scores_at: int,  # row of the first direction
) -> None:
    """Scores of four rows: sums over lanes, which take the place of the first products. Those beyond the last are 0."""
    _, n_samples, _, _, group = maps
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
                scores[scores_at + c * n_samples + n + r] = partial[at + c * n_rows + r]
            else:
                partial[at + c * n_rows + r] = 0


@inlined
def backproject(
    maps: Maps,
    n: int,
    first: int,
    row_scores: NDArray,  # (blocks of rows, GROUP GROUP lanes) real: the first GROUP GROUP of each are scores
    at: int,
    tiles: NDArray,  # see Krylov; images: in and out
    images_at: int,
) -> None:
    """Add four rows, times their scores, to the images of four directions, over a chunk of pixels."""
    flat, n_samples, n_pixels, mean, group = maps
    n_lanes = lanes_of(flat)
    n_rows = len(group)
    x = registers(splat(flat.dtype.type(0)))
    y = registers(splat(flat.dtype.type(0)))
    for i in range(n_rows * n_rows):
        y[i] = splat(row_scores[at + i])
    for v in range(first, min(first + CHUNK, (n_pixels + n_lanes - 1) // n_lanes)):
        for r in range(n_rows):
            x[r] = centred(flat, min(n + r, n_samples - 1), n_pixels, v, mean)
            prefetch(flat, min(n + n_rows + r, n_samples - 1) * n_pixels + v * n_lanes)
        for c in range(n_rows):
            image = load(tiles, images_at + (v * n_rows + c) * n_lanes)
            for r in range(n_rows):
                image = fma(x[r], y[c * n_rows + r], image)
            store(tiles, images_at + (v * n_rows + c) * n_lanes, image)


@kernel
def leading_components(  # noqa: C901 - the whole iteration, with its ends
    maps: Maps,
    krylov: Krylov,
    exponent: int,  # of the maps' scale
    scores: NDArray,  # (N, d) real, out
    variance: NDArray[np.float64],  # (d,) out
) -> float:
    """Scores and variances of one filter; return the residual relative to the largest eigenvalue.

    Negative where the passes did not suffice. The first rows of the basis hold the first block.
    """
    n_components = len(variance)
    n_directions, width, basis, images = krylov.n_directions, krylov.width, krylov.basis, krylov.images
    projected = np.zeros((MAX_PASSES * n_directions, MAX_PASSES * n_directions))
    n_rows = 0
    alive = orthonormalise(basis, 0, n_directions, width, VANISHED)
    for n_passes in range(1, MAX_PASSES + 1):
        first, n_rows = n_rows, n_rows + n_directions
        for at in range(first, n_rows, len(maps.group)):
            centred_pass(maps, krylov, at)
        for j in range(first, n_rows):
            for i in range(j + 1):
                projected[i, j] = projected[j, i] = dot(basis, i * width, images, j * width, width)
        if n_passes >= FIRST_CHECK or alive == 0:
            if not np.isfinite(projected[:n_rows, :n_rows].sum()):
                return -1.0
            values, vectors = np.linalg.eigh(projected[:n_rows, :n_rows])
            residual, converged = worst_residual(
                values, vectors, basis, images, width, n_components, TOLERANCE, exponent != 0
            )
            if converged or (alive == 0 and residual <= MAX_RESIDUAL):  # the space is complete: nothing is left to find
                write_scores(values, vectors, krylov, exponent, scores, variance)
                return residual
            if alive == 0:
                return -1.0
        if n_passes < MAX_PASSES:
            for row in range(n_directions):
                for p in range(width):
                    basis[(n_rows + row) * width + p] = images[(first + row) * width + p]
            alive = orthonormalise(basis, n_rows, n_rows + n_directions, width, VANISHED)
    return -1.0


@kernel
def write_scores(
    values: NDArray[np.float64],  # (rows,) ascending
    vectors: NDArray[np.float64],  # (rows, rows)
    krylov: Krylov,
    exponent: int,
    scores: NDArray,  # (N, d) real, out
    variance: NDArray[np.float64],  # (d,) out
) -> None:
    """Scores and variances of the leading eigenpairs, each with its component's largest entry positive, unscaled."""
    n_samples, n_rows, width = len(scores), len(values), krylov.width
    basis, krylov_scores = krylov.basis, krylov.scores
    unit = math.ldexp(1.0, -exponent)
    component = np.empty(width, dtype=basis.dtype)
    score = np.empty(n_samples)
    for j in range(len(variance)):
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
            scores[n, j] = sign * score[n] * unit
        variance[j] = max(values[e], 0.0) / (n_samples - 1) * unit * unit


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
    kind = np.empty(len(maps), dtype=np.int64)
    decompose(maps, krylov_of(maps, n_components), (0.0,) * GROUP, scores, variance, residual, kind)
    return kind, residual >= 0


def krylov_of(maps: NDArray, n_components: int) -> Krylov:
    """Scratch for the maps (F, N, P) of one filter after the other, uninitialised."""
    _, n_samples, n_pixels = maps.shape
    n_lanes = vectors.lanes(maps.dtype)
    width = -(-n_pixels // n_lanes) * n_lanes
    n_directions = block_size(n_components)
    rows = MAX_PASSES * n_directions
    return Krylov(
        n_directions=n_directions,
        width=width,
        basis=aligned_empty(rows * width, maps.dtype),
        images=aligned_empty(rows * width, maps.dtype),
        scores=aligned_empty(rows * n_samples, maps.dtype),
        tiles=aligned_empty(2 * GROUP * width, maps.dtype),
        sums=np.empty((n_directions + 1, n_pixels)),
        mean=aligned_empty(width, maps.dtype),
    )


@compiled_entry(vectors, orthogonal)
def decompose(
    maps: NDArray,  # (F, N, P) real
    krylov: Krylov,
    group: tuple[float, ...],  # GROUP zeros
    scores: NDArray,  # (F, N, d) real, out
    variance: NDArray[np.float64],  # (F, d) out
    residual: NDArray[np.float64],  # (F,) out
    kind: NDArray[np.int64],  # (F,) out
) -> None:
    """Leading components of every filter of a block."""
    _, n_samples, n_pixels = maps.shape
    sums, mean, width, basis = krylov.sums, krylov.mean, krylov.width, krylov.basis
    for f in range(len(maps)):
        kind[f], largest = sketch(maps[f], sums)
        if kind[f] != FINITE or not largest > 0:
            residual[f] = 0.0 if kind[f] == CONSTANT else -1.0
            continue
        flat, exponent = maps[f].reshape(-1), 0
        if not can_be_read(sums, largest, mean):
            exponent = scale_exponent(largest)
            flat = centred_copy(maps[f], sums[-1], math.ldexp(1.0, exponent))
            mean[:] = 0
        scale = math.ldexp(1.0, exponent)
        for g in range(krylov.n_directions):
            for p in range(width):
                basis[g * width + p] = sums[g, p] * scale if p < n_pixels else 0.0
        of_filter = Maps(flat, n_samples, n_pixels, mean, group)
        residual[f] = leading_components(of_filter, krylov, exponent, scores[f], variance[f])
