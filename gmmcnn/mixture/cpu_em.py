"""EM on the CPU for one problem: the E- and the M-step fused into one pass over the samples, in vector registers.

Layout. Samples lie as d rows of ``stride`` numbers (structure of arrays), whole vectors, the last one padded. The
constants of a component are flat, ``h, b_0 … b_{d-1}, A_00, A_10, A_11, …`` (A by rows of its lower triangle), such
that

    u = A x + b,    log2(π_k N(x | μ_k, Σ_k)) = h − |u|² + shift,    A = √(log2(e) / 2) L⁻¹,  b = −A μ,  Σ = L Lᵀ.

The shift, common to all components, makes the largest h zero: no density exceeds 1, so nothing overflows.

u is the whitened offset from the mean. Sums over samples are kept in these coordinates: Σr, Σr u, Σr u uᵀ. Near the
fixed point the mean of u is zero and its covariance a multiple of the identity, whatever the component looks like, so
nothing cancels in float32: not for a spike at the far end of the scores, nor for a needle.

A block is some vectors of samples, few enough for their u and densities to stay in the first-level cache between E
and M. Lanes add up in their own precision over at most ``FOLD_VECTORS`` vectors and are then folded into float64. The
logarithm of the likelihood is that of a product of mantissas plus a sum of exponents: one logarithm for each fold.
"""

import math
from typing import Any

import numpy as np

from gmmcnn.constants import MIN_MEMBERSHIP
from gmmcnn.hardware.compiled import kernel
from gmmcnn.hardware.vectors import (  # fmt: skip
    VECTOR_BYTES,
    any_lane,
    exp2,
    exponent,
    fma,
    fnma,
    lane_numbers,
    lanes_of,
    load,
    mantissa,
    maximum,
    product,
    reciprocal,
    registers,
    splat,
    store,
    total,
    where,
)
from gmmcnn.mixture.cpu_start import FOLD_VECTORS

CACHE_BYTES = 24 * 1024
"""Kept between the E-step and the M-step of a block: half a first-level cache."""

LOG2_LEAST_DENSITY = (-60.0, -900.0)
"""Samples whose density is below this, in float32 and in float64, are computed anew relative to their largest term."""

TILE, SINGLE = (0.0,) * 4, (0.0,)
"""Their lengths are the numbers of vectors that the E-step works on at once."""

_LOG2_2PI = math.log2(2 * math.pi)
_ROOT_HALF_LOG2_E = math.sqrt(0.5 * math.log2(math.e))


def n_constants(n_dims: int) -> int:
    """Numbers that describe a component, and sums that its M-step needs."""
    return 1 + n_dims + n_dims * (n_dims + 1) // 2


def work_size(n_dims: int, max_components: int, itemsize: int) -> int:
    """Numbers in the scratch array of :func:`expect_and_maximise`."""
    vectors = 2 * FOLD_VECTORS + max_components * n_constants(n_dims)
    block = CACHE_BYTES // VECTOR_BYTES + 2 * max_components * (n_dims + 1)
    return (vectors + block) * (VECTOR_BYTES // itemsize)


@kernel
def block_vectors(n_dims: Any, n_components: Any) -> Any:
    """Vectors of samples in a block."""
    return max(2, min(FOLD_VECTORS, CACHE_BYTES // (n_components * (n_dims + 1) * VECTOR_BYTES)))


@kernel
def expect_and_maximise(
    points: Any, n_samples: Any, stride: Any, dims: Any, constants: Any, n_components: Any, work: Any, sums: Any
) -> Any:
    """One pass: write Σr, Σr u, Σr u uᵀ of every component to ``sums`` and return Σ_n log2 Σ_k of 2^(h − |u|²)."""
    lane = lane_numbers(load(points, 0))
    n_lanes = lanes_of(points)
    n_dims = len(dims)
    n_sums = n_components * (1 + n_dims + n_dims * (n_dims + 1) // 2)
    n_vectors = (n_samples + n_lanes - 1) // n_lanes
    row = block_vectors(n_dims, n_components) * n_lanes
    likelihood_at = n_components * (n_dims + 1) * row
    inverse_at = likelihood_at + row
    partial_at = inverse_at + row
    zero, one = splat(points.dtype.type(0)), splat(points.dtype.type(1))
    log2_least = LOG2_LEAST_DENSITY[0] if points.itemsize == 4 else LOG2_LEAST_DENSITY[1]
    least = exp2(splat(points.dtype.type(log2_least)))
    log2_likelihood = 0.0
    for i in range(n_sums):
        sums[i] = 0.0
    for fold in range(0, n_vectors * n_lanes, FOLD_VECTORS * n_lanes):
        fold_end = min(fold + FOLD_VECTORS * n_lanes, n_vectors * n_lanes)
        for i in range(n_sums):
            store(work, partial_at + i * n_lanes, zero)
        exponents, mantissas = zero, one
        for first in range(fold, fold_end, row):
            width = min(row, fold_end - first)
            expect_block(points, stride, dims, first, width, constants, n_components, row, likelihood_at, work)
            for at in range(0, width, n_lanes):
                valid = lane < splat(points.dtype.type(n_samples - first - at))
                likelihood = load(work, likelihood_at + at)
                if any_lane(likelihood < least):
                    largest = rescale(constants, dims, n_components, row, at, likelihood_at, work)
                    log2_likelihood += total(where(valid, largest, zero))
                    likelihood = load(work, likelihood_at + at)
                store(work, inverse_at + at, where(valid, reciprocal(likelihood), zero))
                likelihood = where(valid, likelihood, one)
                exponents = exponents + exponent(likelihood)
                mantissas = mantissas * mantissa(likelihood)
            maximise_block(dims, width, n_components, row, inverse_at, partial_at, work)
        exponents = exponents + exponent(mantissas)
        log2_likelihood += total(exponents) + math.log2(product(mantissa(mantissas)))
        for i in range(n_sums):
            sums[i] += total(load(work, partial_at + i * n_lanes))
    return log2_likelihood


@kernel
def expect_block(
    points: Any, stride: Any, dims: Any, first: Any, width: Any, constants: Any, n_components: Any, row: Any,
    likelihood_at: Any, work: Any,
) -> None:  # fmt: skip
    """For ``width`` samples from ``first``: density and u of every component, (d + 1) rows each, and the likelihood."""
    n_lanes = lanes_of(points)
    at = 0
    while at + len(TILE) * n_lanes <= width:
        expect_tile(points, stride, dims, first, at, TILE, constants, n_components, row, likelihood_at, work)
        at += len(TILE) * n_lanes
    while at < width:
        expect_tile(points, stride, dims, first, at, SINGLE, constants, n_components, row, likelihood_at, work)
        at += n_lanes


@kernel
def expect_tile(
    points: Any, stride: Any, dims: Any, first: Any, at: Any, tile: Any, constants: Any, n_components: Any, row: Any,
    likelihood_at: Any, work: Any,
) -> None:  # fmt: skip
    """The same for as many vectors as ``tile`` is long; samples and likelihoods stay in registers."""
    n_lanes = lanes_of(points)
    n_dims = len(dims)
    n_numbers = 1 + n_dims + n_dims * (n_dims + 1) // 2
    zero = splat(points.dtype.type(0))
    c, x, likelihood = registers(zero), registers(zero), registers(zero)
    for v in range(len(tile)):
        likelihood[v] = zero
        for j in range(n_dims):
            x[v * n_dims + j] = load(points, first + at + v * n_lanes + j * stride)
    for k in range(n_components):
        base = k * (n_dims + 1) * row + at
        for i in range(n_numbers):
            c[i] = splat(constants[k * n_numbers + i])
        for v in range(len(tile)):
            exponent_ = c[0]
            a = 1 + n_dims
            for j in range(n_dims):
                u = c[1 + j]
                for i in range(j + 1):
                    u = fma(c[a + i], x[v * n_dims + i], u)
                a += j + 1
                store(work, base + (1 + j) * row + v * n_lanes, u)
                exponent_ = fnma(u, u, exponent_)
            density = exp2(exponent_)
            store(work, base + v * n_lanes, density)
            likelihood[v] = likelihood[v] + density
    for v in range(len(tile)):
        store(work, likelihood_at + at + v * n_lanes, likelihood[v])


@kernel
def rescale(constants: Any, dims: Any, n_components: Any, row: Any, at: Any, likelihood_at: Any, work: Any) -> Any:
    """Divide the densities of one vector of samples by the largest of each, without underflow; return its log2."""
    n_dims = len(dims)
    n_numbers = 1 + n_dims + n_dims * (n_dims + 1) // 2
    largest = splat(work.dtype.type(-np.inf))
    for again in range(2):
        likelihood = splat(work.dtype.type(0))
        for k in range(n_components):
            base = k * (n_dims + 1) * row + at
            exponent_ = splat(constants[k * n_numbers])
            for j in range(n_dims):
                u = load(work, base + (1 + j) * row)
                exponent_ = fnma(u, u, exponent_)
            if again == 0:
                largest = maximum(largest, exponent_)
            else:
                density = exp2(exponent_ - largest)
                store(work, base, density)
                likelihood = likelihood + density
        store(work, likelihood_at + at, likelihood)
    return largest


@kernel
def maximise_block(
    dims: Any, width: Any, n_components: Any, row: Any, inverse_at: Any, partial_at: Any, work: Any
) -> None:
    """Add the samples of a block to the partial sums of every component."""
    n_lanes = lanes_of(work)
    n_dims = len(dims)
    n_numbers = 1 + n_dims + n_dims * (n_dims + 1) // 2
    partial = registers(load(work, 0))
    u = registers(load(work, 0))
    for k in range(n_components):
        base = k * (n_dims + 1) * row
        for i in range(n_numbers):
            partial[i] = load(work, partial_at + (k * n_numbers + i) * n_lanes)
        for at in range(0, width, n_lanes):
            r = load(work, base + at) * load(work, inverse_at + at)
            partial[0] = partial[0] + r
            a = 1 + n_dims
            for j in range(n_dims):
                u[j] = load(work, base + (1 + j) * row + at)
                ru = r * u[j]
                partial[1 + j] = partial[1 + j] + ru
                for i in range(j + 1):
                    partial[a + i] = fma(ru, u[i], partial[a + i])
                a += j + 1
        for i in range(n_numbers):
            store(work, partial_at + (k * n_numbers + i) * n_lanes, partial[i])


@kernel
def hard_sums(
    points: Any, n_samples: Any, stride: Any, dims: Any, constants: Any, n_components: Any, labels: Any, sums: Any
) -> None:
    """The sums of :func:`expect_and_maximise` for responsibilities 0 and 1."""
    n_lanes = lanes_of(points)
    n_dims = len(dims)
    n_numbers = 1 + n_dims + n_dims * (n_dims + 1) // 2
    zero, one = splat(points.dtype.type(0)), splat(points.dtype.type(1))
    c, partial, u = registers(zero), registers(zero), registers(zero)
    for i in range(n_components * n_numbers):
        sums[i] = 0.0
    for fold in range(0, n_samples, FOLD_VECTORS * n_lanes):
        end = min(fold + FOLD_VECTORS * n_lanes, n_samples)
        for k in range(n_components):
            number = splat(points.dtype.type(k))
            for i in range(n_numbers):
                c[i] = splat(constants[k * n_numbers + i])
                partial[i] = zero
            for at in range(fold, end, n_lanes):
                r = where(load(labels, at) == number, one, zero)
                partial[0] = partial[0] + r
                a = 1 + n_dims
                for j in range(n_dims):
                    offset = c[1 + j]
                    for i in range(j + 1):
                        offset = fma(c[a + i], load(points, at + i * stride), offset)
                    u[j] = offset
                    ru = r * offset
                    partial[1 + j] = partial[1 + j] + ru
                    for i in range(j + 1):
                        partial[a + i] = fma(ru, u[i], partial[a + i])
                    a += j + 1
            for i in range(n_numbers):
                sums[k * n_numbers + i] += total(partial[i])


@kernel
def centre_constants(dims: Any, n_components: Any, centres: Any, constants: Any) -> None:
    """Constants with u = x − centre."""
    n_dims = len(dims)
    n_numbers = 1 + n_dims + n_dims * (n_dims + 1) // 2
    for k in range(n_components):
        constants[k * n_numbers] = 0
        a = 1 + n_dims
        for j in range(n_dims):
            constants[k * n_numbers + 1 + j] = -centres[k * n_dims + j]
            for i in range(j):
                constants[k * n_numbers + a + i] = 0
            constants[k * n_numbers + a + j] = 1
            a += j + 1


@kernel
def update(
    sums: Any, n_samples: Any, dims: Any, n_components: Any, reg_covar: Any, min_pivot: Any, constants: Any,
    weights: Any, means: Any, factors: Any, scratch: Any,
) -> Any:  # fmt: skip
    """M-step: weights (K), means (K d) and Cholesky factors (K d d) from the sums; constants of the next E-step.

    ``constants`` enter as those that the sums were taken with; ``scratch`` holds 3 d d float64. Returns the shift.
    """
    n_dims = len(dims)
    n_numbers = 1 + n_dims + n_dims * (n_dims + 1) // 2
    inverse, covariance = scratch[: n_dims * n_dims], scratch[n_dims * n_dims : 2 * n_dims * n_dims]
    shift = -np.inf
    for k in range(n_components):
        size = sums[k * n_numbers]
        if size < MIN_MEMBERSHIP:
            weights[k] = 0.0
            constants[k * n_numbers] = -np.inf
            continue
        weights[k] = size / n_samples
        share = 1.0 / size
        invert_triangle(constants, k * n_numbers + 1 + n_dims, dims, inverse)
        first, second = k * n_numbers + 1, k * n_numbers + 1 + n_dims
        a = second
        for j in range(n_dims):  # covariance of u; the mean of x is A⁻¹ (mean of u − b)
            mean = 0.0
            for i in range(j + 1):
                mean_u = sums[first + i] * share
                mean += inverse[j * n_dims + i] * (mean_u - np.float64(constants[first + i]))
                entry = sums[a + i] * share - sums[first + j] * share * mean_u
                covariance[j * n_dims + i] = covariance[i * n_dims + j] = entry
            means[k * n_dims + j] = mean
            a += j + 1
        congruence(inverse, covariance, dims, scratch[2 * n_dims * n_dims :])
        factor = factors[k * n_dims * n_dims : (k + 1) * n_dims * n_dims]
        root_determinant = 1.0
        for j in range(n_dims):
            for i in range(j + 1):
                pivot = covariance[j * n_dims + i]
                for m in range(i):
                    pivot -= factor[j * n_dims + m] * factor[i * n_dims + m]
                if i < j:
                    factor[j * n_dims + i] = pivot / factor[i * n_dims + i]
                else:
                    root = math.sqrt(max(pivot + reg_covar, min_pivot))
                    factor[j * n_dims + j] = root
                    root_determinant *= root
        h = math.log2(weights[k] / root_determinant) - 0.5 * n_dims * _LOG2_2PI
        write_constants(factor, means, k, dims, inverse, constants)
        sums[k * n_numbers] = h
        shift = max(shift, h)
    for k in range(n_components):
        if weights[k] > 0:
            constants[k * n_numbers] = sums[k * n_numbers] - shift
    return shift


@kernel
def invert_triangle(constants: Any, at: Any, dims: Any, inverse: Any) -> None:
    """Inverse (d, d) of the lower triangle stored by rows from ``constants[at]``."""
    n_dims = len(dims)
    a = at
    for j in range(n_dims):
        diagonal = 1.0 / np.float64(constants[a + j])
        for i in range(j):
            entry = 0.0
            for m in range(i, j):
                entry += np.float64(constants[a + m]) * inverse[m * n_dims + i]
            inverse[j * n_dims + i] = -entry * diagonal
        inverse[j * n_dims + j] = diagonal
        a += j + 1


@kernel
def congruence(triangle: Any, matrix: Any, dims: Any, scratch: Any) -> None:
    """Replace the symmetric matrix C (d, d) by T C Tᵀ, for a lower triangle T (d, d)."""
    n_dims = len(dims)
    for j in range(n_dims):
        for i in range(n_dims):
            entry = 0.0
            for m in range(j + 1):
                entry += triangle[j * n_dims + m] * matrix[m * n_dims + i]
            scratch[j * n_dims + i] = entry
    for j in range(n_dims):
        for i in range(n_dims):
            entry = 0.0
            for m in range(i + 1):
                entry += scratch[j * n_dims + m] * triangle[i * n_dims + m]
            matrix[j * n_dims + i] = entry


@kernel
def write_constants(factor: Any, means: Any, k: Any, dims: Any, inverse: Any, constants: Any) -> None:
    """A = √(log2(e) / 2) L⁻¹ and b = −A μ, the latter with the rounded A."""
    n_dims = len(dims)
    n_numbers = 1 + n_dims + n_dims * (n_dims + 1) // 2
    at = k * n_numbers + 1 + n_dims
    for j in range(n_dims):
        diagonal = 1.0 / factor[j * n_dims + j]
        b = 0.0
        for i in range(j + 1):
            if i < j:
                entry = 0.0
                for m in range(i, j):
                    entry += factor[j * n_dims + m] * inverse[m * n_dims + i]
                inverse[j * n_dims + i] = -entry * diagonal
            else:
                inverse[j * n_dims + j] = diagonal
            constants[at + i] = _ROOT_HALF_LOG2_E * inverse[j * n_dims + i]
            b -= np.float64(constants[at + i]) * means[k * n_dims + i]
        constants[k * n_numbers + 1 + j] = b
        at += j + 1


@kernel
def predict(
    points: Any, n_samples: Any, stride: Any, dims: Any, constants: Any, n_components: Any, labels: Any
) -> None:
    """Component of largest responsibility for every sample, as a number of the kind of ``labels``; -1 beyond them."""
    n_lanes = lanes_of(points)
    n_dims = len(dims)
    n_numbers = 1 + n_dims + n_dims * (n_dims + 1) // 2
    lane = lane_numbers(load(points, 0))
    for at in range(0, n_samples, n_lanes):
        largest = splat(points.dtype.type(-np.inf))
        label = splat(points.dtype.type(0))
        for k in range(n_components):
            exponent_ = splat(constants[k * n_numbers])
            a = k * n_numbers + 1 + n_dims
            for j in range(n_dims):
                u = splat(constants[k * n_numbers + 1 + j])
                for i in range(j + 1):
                    u = fma(splat(constants[a + i]), load(points, at + i * stride), u)
                a += j + 1
                exponent_ = fnma(u, u, exponent_)
            larger = exponent_ > largest
            largest = where(larger, exponent_, largest)
            label = where(larger, splat(points.dtype.type(k)), label)
        valid = lane < splat(points.dtype.type(n_samples - at))
        store(labels, at, where(valid, label, splat(points.dtype.type(-1))))
