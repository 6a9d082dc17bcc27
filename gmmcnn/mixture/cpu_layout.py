"""How the kernels of the CPU engine lay out what they work on.

Samples lie as d rows of ``stride`` numbers (structure of arrays), whole vectors, the last one padded. Three flat arrays
hold K components of ``n_numbers(d)`` numbers each, in one order: a scalar, a vector (d), and a lower triangle
(d (d + 1) / 2) by rows.

=========  =====  ========  ============================================
array      scalar vector    triangle
=========  =====  ========  ============================================
mixture    π      μ         L, with Σ = L Lᵀ
constants  h      b         A, with u = A x + b (:mod:`gmmcnn.mixture.cpu_em`)
sums       Σ r    Σ r u     Σ r u uᵀ
=========  =====  ========  ============================================
"""

from typing import NamedTuple

import numpy as np
from numba.extending import register_jitable
from numpy.typing import NDArray

FOLD_VECTORS = 64
"""Lanes add up in their own precision over so many vectors, then in float64."""


class Samples(NamedTuple):
    """Standardised samples of one filter."""

    points: NDArray
    """(d stride,) float32 or float64."""
    n_samples: int
    """N"""
    stride: int
    """Samples in a row, the padding included."""
    dims: tuple[float, ...]
    """d zeros: their number is a constant to the compiler."""


class EMSettings(NamedTuple):
    """Settings of a sweep, of types that compiled code knows."""

    k_min: int
    n_init: int
    tol: float
    max_iter: int
    reg_covar: float
    min_pivot: float
    """Floor of the pivots of a Cholesky factor."""
    seed: np.uint64
    precision: float
    """Distance of 1 from the next number, at the precision of the data."""


class Workspace(NamedTuple):
    """What one thread fits mixtures in, one after the other. ``real`` is the dtype of the samples."""

    mixture: NDArray[np.float64]
    """(k_max n_numbers,) weights, means and factors."""
    constants: NDArray
    """(k_max n_numbers,) real."""
    best_constants: NDArray
    """(k_max n_numbers,) real: those of the best start."""
    sums: NDArray[np.float64]
    """(k_max n_numbers,); sizes and sums of clusters (K, 1 + d) in Lloyd's iteration."""
    centres: NDArray
    """(k_max d,) real."""
    labels: NDArray
    """(stride,) real: numbers of components, -1 beyond the last sample. As real numbers they compare lane by lane."""
    nearest: NDArray
    """(stride,) real: squared distances from the nearest centre."""
    vector_sums: NDArray[np.float64]
    """(stride,) sums of ``nearest`` over each vector."""
    block: NDArray
    """(block_size,) real: a block of samples between E-step and M-step."""
    squares: NDArray[np.float64]
    """(3 d d,) matrices of the M-step."""


@register_jitable
def n_numbers(n_dims: int) -> int:
    """Numbers that describe a component, and sums that its M-step needs."""
    return 1 + n_dims + n_dims * (n_dims + 1) // 2


@register_jitable
def entry(i: int, j: int) -> int:
    """Place of row i, column j ≤ i in a lower triangle by rows."""
    return i * (i + 1) // 2 + j
