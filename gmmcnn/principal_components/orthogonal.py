"""What both iterations for principal components share: orthonormal directions in padded rows, and their eigenpairs."""

import math

import numpy as np
from numpy.typing import NDArray

from gmmcnn.hardware.compiled import kernel
from gmmcnn.hardware.vectors import fma, lanes_of, load, splat, store, total

GROUP = 4
"""Directions that a pass takes at once, and rows."""

SPARE_DIRECTIONS = 2
"""A block has at least so many directions more than components are wanted."""

NEGLIGIBLE = 1e-7
"""An eigenvalue below this share of the largest is within the rounding of float32, and its direction of no
consequence."""

SMALLEST_ENTRY, LARGEST_ENTRY = 1e-6, 1e6
"""Of sums of samples with which maps are taken as they are: float32 begins to lose squared norms of images at 1e-9 and
at 1e8."""

MAX_EXPONENT = 1022
"""Of a power of two that float64 holds, with either sign."""

FOLD_VECTORS = 64

HASH = np.uint64(0x9E3779B97F4A7C15)

CONSTANT, FINITE, NOT_FINITE = range(3)


def block_size(n_components: int) -> int:
    """Directions in a block: a whole number of groups."""
    return -(-(n_components + SPARE_DIRECTIONS) // GROUP) * GROUP


@kernel
def hashed(i: int) -> float:
    """A fixed number in [-1, 1) for every i >= 0, as good as drawn at random."""
    return ((np.uint64(i + 1) * HASH) >> np.uint64(40)) / 2.0**23 - 1.0


@kernel
def scale_exponent(largest: float) -> int:
    """The power of two that brings a number to [1/2, 1), as far as float64 holds it."""
    return max(-MAX_EXPONENT, min(-math.frexp(largest)[1], MAX_EXPONENT))


@kernel
def dot(a: NDArray, at_a: int, b: NDArray, at_b: int, width: int) -> float:
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
def add_multiple(target: NDArray, at: int, factor: float, source: NDArray, at_source: int, width: int) -> None:
    """``target += factor * source`` for padded rows."""
    n_lanes = lanes_of(target)
    scale = splat(target.dtype.type(factor))
    for p in range(0, width, n_lanes):
        store(target, at + p, fma(scale, load(source, at_source + p), load(target, at + p)))


@kernel
def orthonormalise(basis: NDArray, first: int, last: int, width: int, vanished: float) -> int:
    """Make rows first … last of the basis orthonormal to each other and to all before; return how many do not vanish.

    Twice over by modified Gram-Schmidt. A row of which no more than the share ``vanished`` lies outside the span of
    those before it becomes zero.
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
        factor = 1.0 / kept if kept > vanished * size and kept > 0 else 0.0
        alive += factor > 0
        for p in range(width):
            basis[at + p] *= factor
    return alive


@kernel
def worst_residual(  # noqa: PLR0917 - Numba takes arguments by position
    values: NDArray[np.float64],  # (rows,) ascending
    vectors: NDArray[np.float64],  # (rows, rows)
    basis: NDArray,  # (rows P',) real: orthonormal directions Q
    images: NDArray,  # (rows P',) real: C Q
    width: int,
    n_components: int,
    tolerance: float,  # share of an eigenvalue's distance to the others below which its residual is small
    is_extreme: bool,  # noqa: FBT001 - Numba knows no arguments by keyword only
) -> tuple[float, bool]:
    """Largest residual of the wanted eigenpairs over the largest eigenvalue; whether all are small for their gaps.

    In maps of extreme size what looks negligible may be all samples but one: it is left to the exact decomposition.
    """
    n_rows = len(values)
    largest = values[n_rows - 1]
    if not largest > 0:
        return np.inf, False
    worst, converged = 0.0, True
    difference = np.empty(width, dtype=basis.dtype)
    for j in range(n_components):
        e = n_rows - 1 - j
        if values[e] < NEGLIGIBLE * largest:
            if is_extreme:
                return np.inf, False
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
        converged &= residual <= tolerance * gap
        worst = max(worst, residual / largest)
    return worst, converged
