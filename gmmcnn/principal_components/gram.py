"""Leading principal components of one filter's maps of few pixels by their Gram matrix, compiled.

With X the centred maps (N, P), C = XᵀX is made once, and what follows works on a matrix that lies in the second-level
cache, by subspace iteration with Chebyshev filters (Zhou, Saad, Tiago and Chelikowsky, "Self-consistent-field
calculations using Chebyshev-filtered subspace iteration", 2006): a polynomial in C that is small on the unwanted
eigenvalues is applied to a few directions, these are made orthonormal, and the eigenpairs (θ, s) of QᵀCQ give
components v = Q s with residuals ‖C v − θ v‖. Scores X v take one more reading.

Samples are read in blocks that stay in the first-level cache. The first sample is subtracted before the mean is, so
that an offset costs no digits. A block's products are summed in the maps' precision and added in float64, in which
everything on C is done. Maps whose squares float32 would lose are left alone.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gmmcnn.hardware import vectors
from gmmcnn.hardware.compiled import compiled_entry, inlined, kernel
from gmmcnn.hardware.vectors import aligned_empty, fma, lanes_of, load, load_all, registers, splat, store, totals
from gmmcnn.principal_components import orthogonal
from gmmcnn.principal_components.orthogonal import (  # fmt: skip
    CONSTANT,
    FINITE,
    GROUP,
    NEGLIGIBLE,
    NOT_FINITE,
    add_multiple,
    block_size,
    dot,
    hashed,
    orthonormalise,
    worst_residual,
)

ROWS = 8
"""Rows of the Gram matrix in hand at once, or directions; with vectors of two columns they fill the registers."""

BLOCK = 64
"""Samples in a block: 28 KB of 100 pixels."""

SMALLEST_SPREAD, LARGEST_SPREAD = 1e-12, 1e12
"""Of a pixel's sum of differences from the first sample: within these float32 holds the squares of what counts."""

MAX_ROUNDS = 16
MAX_DEGREE = 8

TOLERANCE = 3e-6
"""As of the Krylov iteration, and stricter, since a product with C costs little."""

RESOLVED = 1e-4
"""An eigenvalue between this and the negligible share of the largest is left to passes over the maps: rounding a Gram
matrix turns its direction by eps λ_1 / λ, which moves scores by eps √(λ_1 / λ) of their scale."""

LARGEST_GAIN = 1e8
"""By which a filter may raise the first eigenvector over the last one wanted: float64 holds both in one direction."""

VANISHED = 1e-13
"""A direction of which no more is left, once those before it are taken out, is rounding."""


class Scratch(NamedTuple):
    """What is written over for every filter. P' is P rounded up to whole vectors."""

    n_directions: int
    block: NDArray
    """(BLOCK P',) real: centred samples; zero beyond the last pixel."""
    tile: NDArray
    """(2 ROWS lanes,) real: one tile of C, of one block: ROWS rows, two vectors of columns."""
    corners: NDArray[np.int64]
    """(tiles, 2) first row and first column of every tile that reaches beyond the diagonal to the right."""
    tiles: NDArray[np.float64]
    """(tiles, 2 ROWS lanes) their sums over blocks."""
    components: NDArray
    """(d P',) real."""
    gram: NDArray[np.float64]
    """(P' P',) C."""
    directions: NDArray[np.float64]
    """(4 b P',) four sets of directions, b of them, their number rounded up to whole ``ROWS``."""


def gram_pca(
    maps: NDArray, n_components: int, scores: NDArray, variance: NDArray, residual: NDArray
) -> tuple[NDArray, NDArray]:
    """Fill in scores (F, N, d), variances (F, d) and residuals (F,) of maps (F, N, P), contiguous, d + 6 < P.

    Returns
    -------
    kind : (F,)
        ``CONSTANT``, ``FINITE`` or ``NOT_FINITE``.
    converged : (F,) bool
        Where this is False nothing is filled in.
    """
    kind = np.empty(len(maps), dtype=np.int64)
    decompose_by_gram(maps, scratch_of(maps, n_components), scores, variance, residual, kind)
    return kind, residual >= 0


def scratch_of(maps: NDArray, n_components: int) -> Scratch:
    """Scratch for the maps (F, N, P) of one filter after the other, of no content but for the zeros of ``block``."""
    n_lanes = vectors.lanes(maps.dtype)
    width = -(-maps.shape[2] // n_lanes) * n_lanes
    n_directions = block_size(n_components) + GROUP
    rows = -(-n_directions // ROWS) * ROWS
    corners = [(i, v) for i in range(0, width, ROWS) for v in range(i // n_lanes * n_lanes, width, 2 * n_lanes)]
    block = aligned_empty(BLOCK * width, maps.dtype)
    block[:] = 0
    return Scratch(
        n_directions=n_directions,
        block=block,
        tile=aligned_empty(2 * ROWS * n_lanes, maps.dtype),
        corners=np.array(corners),
        tiles=np.empty((len(corners), 2 * ROWS * n_lanes)),
        components=aligned_empty(n_components * width, maps.dtype),
        gram=aligned_empty(width * width, np.float64),
        directions=aligned_empty(4 * rows * width, np.float64),
    )


@compiled_entry(vectors, orthogonal)
def decompose_by_gram(
    maps: NDArray,  # (F, N, P) real
    scratch: Scratch,
    scores: NDArray,  # (F, N, d) real, out
    variance: NDArray[np.float64],  # (F, d) out
    residual: NDArray[np.float64],  # (F,) out
    kind: NDArray[np.int64],  # (F,) out
) -> None:
    """Leading components of every filter of a block of filters."""
    n_pixels = maps.shape[2]
    shift = np.empty(n_pixels, maps.dtype)
    for f in range(len(maps)):
        kind[f], largest = moments(maps[f], shift)
        residual[f] = 0.0 if kind[f] == CONSTANT else -1.0
        if kind[f] == FINITE and SMALLEST_SPREAD <= largest <= LARGEST_SPREAD:
            multiply_samples(maps[f], shift, scratch)
            residual[f] = leading_components(scratch, n_pixels, variance[f])
        if kind[f] == FINITE and residual[f] >= 0:
            residual[f] = max(residual[f], np.float64(np.finfo(maps.dtype).eps))
            write_scores(maps[f], shift, scratch, scores[f], variance[f])


@kernel
def moments(
    maps: NDArray,  # (N, P) real
    shift: NDArray,  # (P,) real, out: the mean less the first sample
) -> tuple[int, float]:
    """What the maps are, and the largest of the pixels' sums of differences from the first sample."""
    n_samples, n_pixels = maps.shape
    total, spread, first = np.zeros(n_pixels), np.zeros(n_pixels), maps[0]
    sums, sizes = np.empty_like(shift), np.empty_like(shift)
    for start in range(0, n_samples, BLOCK):
        sums[:] = 0
        sizes[:] = 0
        for n in range(start, min(start + BLOCK, n_samples)):
            row = maps[n]
            for p in range(n_pixels):
                difference = row[p] - first[p]
                sums[p] += difference
                sizes[p] += abs(difference)
        for p in range(n_pixels):
            total[p] += sums[p]
            spread[p] += sizes[p]
    largest, checksum = 0.0, 0.0
    for p in range(n_pixels):
        shift[p] = total[p] / n_samples
        checksum += spread[p] * 0 + first[p] * 0
        largest = max(largest, spread[p])
    if not np.isfinite(checksum):
        return NOT_FINITE, largest
    return (FINITE if largest > 0 else CONSTANT), largest


@kernel
def centre(
    maps: NDArray,  # (N, P) real
    start: int,  # sample
    shift: NDArray,  # (P,) real
    block: NDArray,  # (BLOCK P',) real, out up to the last sample and the last pixel
) -> int:
    """Centred samples of a block; returns how many there are."""
    n_samples, n_pixels = maps.shape
    width = len(block) // BLOCK
    first = maps[0]
    n_rows = min(BLOCK, n_samples - start)
    for r in range(n_rows):
        row, target = maps[start + r], block[r * width : r * width + n_pixels]
        for p in range(n_pixels):
            target[p] = row[p] - first[p] - shift[p]
    return n_rows


@kernel
def multiply_samples(
    maps: NDArray,  # (N, P) real
    shift: NDArray,  # (P,) real: see moments
    scratch: Scratch,  # gram: out
) -> None:
    """C = XᵀX of the centred maps X: the tiles right of the diagonal, block by block, and the others from these."""
    block, tile, tiles, corners = scratch.block, scratch.tile, scratch.tiles, scratch.corners
    n_lanes = lanes_of(block)
    width = len(block) // BLOCK
    tiles[:] = 0.0
    for first in range(0, len(maps), BLOCK):
        n_rows = centre(maps, first, shift, block)
        for t in range(len(corners)):
            i, v = corners[t]
            multiply_tile(block, n_rows, i, v, min(v + n_lanes, width - n_lanes), tile)
            sums = tiles[t]
            for k in range(len(tile)):
                sums[k] += tile[k]
    gram = scratch.gram.reshape(width, width)
    for t in range(len(corners)):
        i, v = corners[t]
        for r in range(ROWS):
            for j in range(min(2 * n_lanes, width - v)):
                gram[i + r, v + j] = gram[v + j, i + r] = tiles[t, r * 2 * n_lanes + j]


@inlined
def multiply_tile(
    block: NDArray,  # (BLOCK P',) real
    n_rows: int,  # of the block
    i: int,  # first of ROWS rows of C
    v: int,  # first column of one vector of columns
    w: int,  # and of another
    tile: NDArray,  # (ROWS 2 lanes,) real, out
) -> None:
    """A block's products of ROWS pixels and two vectors of pixels."""
    n_lanes = lanes_of(block)
    width = len(block) // BLOCK
    zero = splat(block.dtype.type(0))
    sums = registers(zero)
    for k in range(2 * ROWS):
        sums[k] = zero
    for n in range(n_rows):
        left, right = load(block, n * width + v), load(block, n * width + w)
        for r in range(ROWS):
            x = load_all(block, n * width + i + r)
            sums[2 * r] = fma(x, left, sums[2 * r])
            sums[2 * r + 1] = fma(x, right, sums[2 * r + 1])
    for k in range(2 * ROWS):
        store(tile, k * n_lanes, sums[k])


@kernel
def leading_components(
    scratch: Scratch,  # the first d rows of directions: components, out
    n_pixels: int,
    variance: NDArray[np.float64],  # (d,) out: eigenvalues
) -> float:
    """Leading eigenpairs of C; returns the residual relative to the largest, negative where none were found."""
    n_directions, gram, directions = scratch.n_directions, scratch.gram, scratch.directions
    n_components = len(variance)
    width = len(scratch.block) // BLOCK
    part = len(directions) // 4
    basis, images = directions[:part], directions[part : 2 * part]
    before, spare = directions[2 * part : 3 * part], directions[3 * part :]
    directions[:] = 0.0
    for g in range(n_directions):
        for p in range(n_pixels):
            before[g * width + p] = hashed(g * n_pixels + p)
    multiply(gram, width, n_directions, before, basis)
    projected = np.empty((n_directions, n_directions))
    for _ in range(MAX_ROUNDS):
        orthonormalise(basis, 0, n_directions, width, VANISHED)
        multiply(gram, width, n_directions, basis, images)
        for j in range(n_directions):
            for i in range(j + 1):
                projected[i, j] = projected[j, i] = dot(basis, i * width, images, j * width, width)
        if not np.isfinite(projected.sum()):
            return -1.0
        values, rotation = np.linalg.eigh(projected)
        residual, converged = worst_residual(
            values, rotation, basis, images, width, n_components, TOLERANCE, is_extreme=False
        )
        last = values[n_directions - n_components]
        if not np.isfinite(residual) or (converged and NEGLIGIBLE <= last / values[n_directions - 1] < RESOLVED):
            return -1.0
        rotate(rotation, width, basis, before)
        if converged:
            directions[: n_components * width] = before[: n_components * width]
            for j in range(n_components):
                variance[j] = values[n_directions - 1 - j]
            return residual
        rotate(rotation, width, images, spare)
        directions[: 2 * part] = directions[2 * part :]
        apply_filter(gram, width, values, n_components, directions)
    return -1.0


@kernel
def rotate(rotation: NDArray[np.float64], width: int, rows: NDArray[np.float64], out: NDArray[np.float64]) -> None:
    """Combinations of rows by each eigenvector, the last one first."""
    n_rows = len(rotation)
    out[: n_rows * width] = 0.0
    for j in range(n_rows):
        for i in range(n_rows):
            add_multiple(out, j * width, rotation[i, n_rows - 1 - j], rows, i * width, width)


@kernel
def apply_filter(
    gram: NDArray[np.float64],  # (P' P',)
    width: int,
    values: NDArray[np.float64],  # (rows,) ascending: of the Ritz vectors
    n_components: int,
    directions: NDArray[np.float64],  # (4 b P',) Ritz vectors V in the first quarter, in and out, CV in the second
) -> None:
    """A Chebyshev polynomial of C times the directions, small on [0, smallest value] and 1 at the largest.

    Its degree suffices to find the last one wanted, if what was found of the unwanted ones is right, but is not so high
    that the first one drowns the last.
    """
    n_rows = len(values)
    part = len(directions) // 4
    largest = values[n_rows - 1]
    half = max(values[0], NEGLIGIBLE * largest) / 2
    at_largest = math.acosh(max(largest / half - 1, 1.0))
    at_last = math.acosh(max(values[n_rows - n_components] / half - 1, 1.0))
    enough = math.ceil(math.log(2 / TOLERANCE) / max(at_last, 1e-3))
    degree = int(min(enough, MAX_DEGREE, math.log(LARGEST_GAIN) / max(at_largest - at_last, 1e-3)))
    sigma = half / (largest - half)
    growth = 2 / sigma
    old, new, older = directions[:part], directions[part : 2 * part], directions[2 * part : 3 * part]
    for p in range(n_rows * width):
        new[p] = (new[p] - half * old[p]) * (sigma / half)
    for _ in range(1, degree):
        following = 1 / (growth - sigma)
        multiply(gram, width, n_rows, new, older)
        for p in range(n_rows * width):
            older[p] = (older[p] - half * new[p]) * (2 * following / half) - sigma * following * old[p]
        sigma = following
        old, new, older = new, older, old
    for p in range(n_rows * width):
        directions[p] = new[p]


@kernel
def multiply(
    gram: NDArray[np.float64],  # (P' P',)
    width: int,
    n_rows: int,
    rows: NDArray[np.float64],  # (b P',)
    out: NDArray[np.float64],  # (b P',)
) -> None:
    """Every row times C, ROWS at a time."""
    n_lanes = lanes_of(gram)
    for first in range(0, n_rows, ROWS):
        for v in range(0, width, 2 * n_lanes):
            multiply_columns(gram, width, first * width, rows, v, min(v + n_lanes, width - n_lanes), out)


@inlined
def multiply_columns(
    gram: NDArray[np.float64],
    width: int,
    at: int,  # where the first of ROWS rows begins
    rows: NDArray[np.float64],
    v: int,  # first column of one vector of columns
    w: int,  # and of another
    out: NDArray[np.float64],
) -> None:
    """Two vectors of columns of ROWS rows times C."""
    zero = splat(0.0)
    sums = registers(zero)
    for k in range(2 * ROWS):
        sums[k] = zero
    for i in range(width):
        left, right = load(gram, i * width + v), load(gram, i * width + w)
        for r in range(ROWS):
            x = load_all(rows, at + r * width + i)
            sums[2 * r] = fma(x, left, sums[2 * r])
            sums[2 * r + 1] = fma(x, right, sums[2 * r + 1])
    for r in range(ROWS):
        store(out, at + r * width + v, sums[2 * r])
        store(out, at + r * width + w, sums[2 * r + 1])


@kernel
def write_scores(
    maps: NDArray,  # (N, P) real
    shift: NDArray,  # (P,) real: see moments
    scratch: Scratch,  # the first d rows of directions are the components
    scores: NDArray,  # (N, d) real, out
    variance: NDArray[np.float64],  # (d,) eigenvalues in, variances out
) -> None:
    """Scores and variances, each with its component's largest entry positive."""
    block, tile, components, directions = scratch.block, scratch.tile, scratch.components, scratch.directions
    n_samples, n_components = scores.shape
    width = len(block) // BLOCK
    for j in range(n_components):
        largest = 0
        for p in range(width):
            components[j * width + p] = directions[j * width + p]
            if abs(directions[j * width + p]) > abs(directions[j * width + largest]):
                largest = p
        if directions[j * width + largest] < 0:
            for p in range(width):
                components[j * width + p] *= -1
        variance[j] = max(variance[j], 0.0) / (n_samples - 1)
    n_lanes = lanes_of(block)
    for first in range(0, n_samples, BLOCK):
        centre(maps, first, shift, block)
        for j in range(n_components):
            for r in range(0, min(BLOCK, n_samples - first), n_lanes):
                project_rows(block, width, r, components, j * width, tile)
                for n in range(first + r, min(first + r + n_lanes, n_samples)):
                    scores[n, j] = tile[n - first - r]


@inlined
def project_rows(block: NDArray, width: int, first: int, components: NDArray, at: int, sums: NDArray) -> None:
    """Products of as many samples as a vector has lanes, and one component."""
    n_lanes = lanes_of(block)
    zero = splat(block.dtype.type(0))
    products = registers(zero)
    for r in range(n_lanes):
        products[r] = zero
    for p in range(0, width, n_lanes):
        v = load(components, at + p)
        for r in range(n_lanes):
            products[r] = fma(load(block, (first + r) * width + p), v, products[r])
    store(sums, 0, totals(products, 0))
