"""EM on the CPU for one problem: the E- and the M-step fused into one pass over the samples, in vector registers.

Arrays lie as :mod:`gmmcnn.mixture.cpu_layout` says. The constants h, b and A of a component are such that

    u = A x + b,    log2(π_k N(x | μ_k, Σ_k)) = h − |u|² + shift,    A = √(log2(e) / 2) L⁻¹,  b = −A μ,  Σ = L Lᵀ.

The shift, common to all components, makes the largest h zero: no density exceeds 1, so nothing overflows.

u is the whitened offset from the mean. Sums over samples are kept in these coordinates: Σr, Σr u, Σr u uᵀ. Near the
fixed point the mean of u is zero and its covariance a multiple of the identity, whatever the component looks like, so
nothing cancels in float32: not for a spike at the far end of the scores, nor for a needle.

A block is some vectors of samples, few enough for their u and densities to stay in the first-level cache between E
and M. Lanes add up in their own precision over at most ``FOLD_VECTORS`` vectors and are then folded into float64. The
logarithm of the likelihood is that of a product of mantissas plus a sum of exponents: one logarithm for each fold.

Functions have the names of their twins in ``kernels/gmm_em.cu`` and :mod:`gmmcnn.mixture.reference`, where there is
one: whiten, expect, maximise, cholesky, prepare, predict.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gmmcnn.constants import MIN_MEMBERSHIP
from gmmcnn.hardware.compiled import inlined, kernel
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
from gmmcnn.mixture.cpu_layout import FOLD_VECTORS, EMSettings, Samples, Workspace, entry, n_numbers

CACHE_BYTES = 24 * 1024
"""Kept between the E-step and the M-step of a block: half a first-level cache."""

LOG2_LEAST_DENSITY = (-60.0, -900.0)
"""Samples whose density is below this, in float32 and in float64, are computed anew relative to their largest term."""

TILE, SINGLE = (0.0,) * 4, (0.0,)
"""Their lengths are the numbers of vectors that the E-step works on at once."""

_LOG2_2PI = math.log2(2 * math.pi)
_ROOT_HALF_LOG2_E = math.sqrt(0.5 * math.log2(math.e))


class Block(NamedTuple):
    """Where in ``work`` lies what is kept of a block of samples, in rows of ``row`` numbers."""

    work: NDArray
    """(block_size,) real. From 0 on (K, d + 1, row): density and u of every component."""
    row: int
    """Samples of a full block."""
    likelihood_at: int
    """(row,): sum of the densities."""
    inverse_at: int
    """(row,): 1 over that, 0 beyond the last sample."""
    partial_at: int
    """(K n_numbers, lanes): the sums of a fold, lane by lane."""


def block_size(n_dims: int, max_components: int, itemsize: int) -> int:
    """Numbers in ``Workspace.block``."""
    vectors = 2 * FOLD_VECTORS + max_components * n_numbers(n_dims)
    block = CACHE_BYTES // VECTOR_BYTES + 2 * max_components * (n_dims + 1)
    return (vectors + block) * (VECTOR_BYTES // itemsize)


@kernel
def block_of(work: NDArray, dims: tuple[float, ...], n_components: int) -> Block:
    """Layout of a block for so many components."""
    n_dims = len(dims)
    fitting = CACHE_BYTES // (n_components * (n_dims + 1) * VECTOR_BYTES)
    row = max(2, min(FOLD_VECTORS, fitting)) * lanes_of(work)
    likelihood_at = n_components * (n_dims + 1) * row
    return Block(work, row, likelihood_at, likelihood_at + row, likelihood_at + 2 * row)


@inlined
def whiten(
    c: Any,  # registers: the constants of a component
    x: Any,  # registers: from `first` on a vector of samples, coordinate by coordinate
    first: int,
    dims: tuple[float, ...],
    u: Any,  # registers, out: d coordinates
) -> None:
    """Whitened offset u = A x + b."""
    for j in range(len(dims)):
        offset = c[1 + j]
        for i in range(j + 1):
            offset = fma(c[1 + len(dims) + entry(j, i)], x[first + i], offset)
        u[j] = offset


@inlined
def load_constants(constants: NDArray, k: int, dims: tuple[float, ...], c: Any) -> None:
    """Registers c = the constants (K n_numbers,) of component k, the same in every lane."""
    for i in range(n_numbers(len(dims))):
        c[i] = splat(constants[k * n_numbers(len(dims)) + i])


@inlined
def load_samples(points: NDArray, stride: int, dims: tuple[float, ...], at: int, x: Any, first: int) -> None:
    """Registers x, from ``first`` on, = the vector of samples at ``at``, coordinate by coordinate."""
    for j in range(len(dims)):
        x[first + j] = load(points, at + j * stride)


@inlined
def add_moments(r: Any, u: Any, dims: tuple[float, ...], partial: Any) -> None:
    """Registers partial += r, r u, r u uᵀ."""
    partial[0] = partial[0] + r
    for j in range(len(dims)):
        ru = r * u[j]
        partial[1 + j] = partial[1 + j] + ru
        for i in range(j + 1):
            at = 1 + len(dims) + entry(j, i)
            partial[at] = fma(ru, u[i], partial[at])


@kernel
def expect_and_maximise(samples: Samples, n_components: int, workspace: Workspace) -> float:
    """One pass: write Σr, Σr u, Σr u uᵀ of every component to ``sums`` and return Σ_n log2 Σ_k of 2^(h − |u|²)."""
    points, n_samples, _, dims = samples
    constants, sums = workspace.constants, workspace.sums
    lane = lane_numbers(load(points, 0))
    n_lanes = lanes_of(points)
    n_sums = n_components * n_numbers(len(dims))
    n_vectors = (n_samples + n_lanes - 1) // n_lanes
    block = block_of(workspace.block, dims, n_components)
    work, row, likelihood_at, inverse_at, partial_at = block
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
            expect(samples, constants, n_components, block, first, width)
            for at in range(0, width, n_lanes):
                valid = lane < splat(points.dtype.type(n_samples - first - at))
                likelihood = load(work, likelihood_at + at)
                if any_lane(likelihood < least):
                    largest = rescale(constants, dims, n_components, block, at)
                    log2_likelihood += total(where(valid, largest, zero))
                    likelihood = load(work, likelihood_at + at)
                store(work, inverse_at + at, where(valid, reciprocal(likelihood), zero))
                likelihood = where(valid, likelihood, one)
                exponents = exponents + exponent(likelihood)
                mantissas = mantissas * mantissa(likelihood)
            accumulate(dims, n_components, block, width)
        exponents = exponents + exponent(mantissas)
        log2_likelihood += total(exponents) + math.log2(product(mantissa(mantissas)))
        for i in range(n_sums):
            sums[i] += total(load(work, partial_at + i * n_lanes))
    return log2_likelihood


@kernel
def expect(
    samples: Samples,
    constants: NDArray,  # (K n_numbers,) real
    n_components: int,
    block: Block,
    first: int,
    width: int,
) -> None:
    """For ``width`` samples from ``first``: density and u of every component, and the likelihood."""
    n_lanes = lanes_of(block.work)
    at = 0
    while at + len(TILE) * n_lanes <= width:
        expect_tile(samples, constants, n_components, block, first, at, TILE)
        at += len(TILE) * n_lanes
    while at < width:
        expect_tile(samples, constants, n_components, block, first, at, SINGLE)
        at += n_lanes


@kernel
def expect_tile(
    samples: Samples,
    constants: NDArray,  # (K n_numbers,) real
    n_components: int,
    block: Block,
    first: int,
    at: int,
    tile: tuple[float, ...],
) -> None:
    """The same for as many vectors as ``tile`` is long; samples and likelihoods stay in registers."""
    points, _, stride, dims = samples
    work, row, likelihood_at, _, _ = block
    n_lanes = lanes_of(points)
    n_dims = len(dims)
    zero = splat(points.dtype.type(0))
    c, x, u, likelihood = registers(zero), registers(zero), registers(zero), registers(zero)
    for v in range(len(tile)):
        likelihood[v] = zero
        load_samples(points, stride, dims, first + at + v * n_lanes, x, v * n_dims)
    for k in range(n_components):
        base = k * (n_dims + 1) * row + at
        load_constants(constants, k, dims, c)
        for v in range(len(tile)):
            whiten(c, x, v * n_dims, dims, u)
            log2_density = c[0]
            for j in range(n_dims):
                store(work, base + (1 + j) * row + v * n_lanes, u[j])
                log2_density = fnma(u[j], u[j], log2_density)
            density = exp2(log2_density)
            store(work, base + v * n_lanes, density)
            likelihood[v] = likelihood[v] + density
    for v in range(len(tile)):
        store(work, likelihood_at + at + v * n_lanes, likelihood[v])


@kernel
def rescale(
    constants: NDArray,  # (K n_numbers,) real
    dims: tuple[float, ...],
    n_components: int,
    block: Block,
    at: int,
) -> Any:
    """Divide the densities of one vector of samples by the largest of each, without underflow; return its log2."""
    work, row, likelihood_at, _, _ = block
    n_dims = len(dims)
    largest = splat(work.dtype.type(-np.inf))
    for again in range(2):
        likelihood = splat(work.dtype.type(0))
        for k in range(n_components):
            base = k * (n_dims + 1) * row + at
            log2_density = splat(constants[k * n_numbers(n_dims)])
            for j in range(n_dims):
                u = load(work, base + (1 + j) * row)
                log2_density = fnma(u, u, log2_density)
            if again == 0:
                largest = maximum(largest, log2_density)
            else:
                density = exp2(log2_density - largest)
                store(work, base, density)
                likelihood = likelihood + density
        store(work, likelihood_at + at, likelihood)
    return largest


@kernel
def accumulate(dims: tuple[float, ...], n_components: int, block: Block, width: int) -> None:
    """Add the samples of a block to the partial sums of every component."""
    work, row, _, inverse_at, partial_at = block
    n_lanes = lanes_of(work)
    n_dims = len(dims)
    partial = registers(load(work, 0))
    u = registers(load(work, 0))
    for k in range(n_components):
        base = k * (n_dims + 1) * row
        own = partial_at + k * n_numbers(n_dims) * n_lanes
        for i in range(n_numbers(n_dims)):
            partial[i] = load(work, own + i * n_lanes)
        for at in range(0, width, n_lanes):
            r = load(work, base + at) * load(work, inverse_at + at)
            for j in range(n_dims):
                u[j] = load(work, base + (1 + j) * row + at)
            add_moments(r, u, dims, partial)
        for i in range(n_numbers(n_dims)):
            store(work, own + i * n_lanes, partial[i])


@kernel
def hard_sums(samples: Samples, n_components: int, workspace: Workspace) -> None:
    """The sums of :func:`expect_and_maximise` for responsibilities 0 and 1, by the labels."""
    points, n_samples, stride, dims = samples
    labels, sums = workspace.labels, workspace.sums
    n_lanes = lanes_of(points)
    zero, one = splat(points.dtype.type(0)), splat(points.dtype.type(1))
    c, x, u, partial = registers(zero), registers(zero), registers(zero), registers(zero)
    for i in range(n_components * n_numbers(len(dims))):
        sums[i] = 0.0
    for fold in range(0, n_samples, FOLD_VECTORS * n_lanes):
        end = min(fold + FOLD_VECTORS * n_lanes, n_samples)
        for k in range(n_components):
            number = splat(points.dtype.type(k))
            load_constants(workspace.constants, k, dims, c)
            for i in range(n_numbers(len(dims))):
                partial[i] = zero
            for at in range(fold, end, n_lanes):
                load_samples(points, stride, dims, at, x, 0)
                whiten(c, x, 0, dims, u)
                add_moments(where(load(labels, at) == number, one, zero), u, dims, partial)
            for i in range(n_numbers(len(dims))):
                sums[k * n_numbers(len(dims)) + i] += total(partial[i])


@kernel
def predict(
    samples: Samples,
    n_components: int,
    constants: NDArray,  # (K n_numbers,) real
    labels: NDArray,  # (stride,) real, out
) -> None:
    """Component of largest responsibility for every sample; -1 beyond the last."""
    points, n_samples, stride, dims = samples
    n_lanes = lanes_of(points)
    lane = lane_numbers(load(points, 0))
    c, x, u = registers(lane), registers(lane), registers(lane)
    for at in range(0, n_samples, n_lanes):
        load_samples(points, stride, dims, at, x, 0)
        largest = splat(points.dtype.type(-np.inf))
        label = splat(points.dtype.type(0))
        for k in range(n_components):
            load_constants(constants, k, dims, c)
            whiten(c, x, 0, dims, u)
            log2_density = c[0]
            for j in range(len(dims)):
                log2_density = fnma(u[j], u[j], log2_density)
            larger = log2_density > largest
            largest = where(larger, log2_density, largest)
            label = where(larger, splat(points.dtype.type(k)), label)
        valid = lane < splat(points.dtype.type(n_samples - at))
        store(labels, at, where(valid, label, splat(points.dtype.type(-1))))


# --- M-step ---


@kernel
def set_centres(dims: tuple[float, ...], n_components: int, workspace: Workspace) -> None:
    """Constants with u = x − centre."""
    n_dims = len(dims)
    constants = workspace.constants
    for k in range(n_components):
        base = k * n_numbers(n_dims)
        constants[base] = 0
        for j in range(n_dims):
            constants[base + 1 + j] = -workspace.centres[k * n_dims + j]
            for i in range(j):
                constants[base + 1 + n_dims + entry(j, i)] = 0
            constants[base + 1 + n_dims + entry(j, j)] = 1


@kernel
def set_nothing(dims: tuple[float, ...], n_components: int, min_pivot: float, workspace: Workspace) -> None:
    """Mixture of components of mean 0 and the least covariance: those that hold nothing in the first M-step stay so."""
    n_dims = len(dims)
    mixture = workspace.mixture
    for i in range(n_components * n_numbers(n_dims)):
        mixture[i] = 0.0
    for k in range(n_components):
        for j in range(n_dims):
            mixture[k * n_numbers(n_dims) + 1 + n_dims + entry(j, j)] = math.sqrt(min_pivot)


@kernel
def maximise(samples: Samples, n_components: int, settings: EMSettings, workspace: Workspace) -> float:
    """M-step: the mixture from the sums, and the constants of the next E-step. Returns the shift.

    The constants enter as those that the sums were taken with.
    """
    dims, n_dims = samples.dims, len(samples.dims)
    mixture, constants, sums = workspace.mixture, workspace.constants, workspace.sums
    inverse = workspace.squares[: n_dims * n_dims]
    covariance = workspace.squares[n_dims * n_dims : 2 * n_dims * n_dims]
    scratch = workspace.squares[2 * n_dims * n_dims :]
    shift = -np.inf
    for k in range(n_components):
        base = k * n_numbers(n_dims)
        first, second = base + 1, base + 1 + n_dims
        size = sums[base]
        if size < MIN_MEMBERSHIP:
            mixture[base] = 0.0
            constants[base] = -np.inf
            continue
        mixture[base] = size / samples.n_samples
        share = 1.0 / size
        invert_triangle(constants, second, dims, inverse)
        for j in range(n_dims):  # covariance of u; the mean of x is A⁻¹ (mean of u − b)
            mean = 0.0
            for i in range(j + 1):
                mean_u = sums[first + i] * share
                mean += inverse[j * n_dims + i] * (mean_u - np.float64(constants[first + i]))
                product_ = sums[second + entry(j, i)] * share - sums[first + j] * share * mean_u
                covariance[j * n_dims + i] = covariance[i * n_dims + j] = product_
            mixture[first + j] = mean
        congruence(inverse, covariance, dims, scratch)
        root_determinant = cholesky(covariance, dims, settings, mixture, second)
        h = math.log2(mixture[base] / root_determinant) - 0.5 * n_dims * _LOG2_2PI
        prepare(mixture, base, dims, inverse, constants)
        sums[base] = h
        shift = max(shift, h)
    for k in range(n_components):
        base = k * n_numbers(n_dims)
        if mixture[base] > 0:
            constants[base] = sums[base] - shift
    return shift


@kernel
def invert_triangle(
    triangles: NDArray,  # flat
    at: int,  # where the lower triangle (d (d + 1) / 2,) begins
    dims: tuple[float, ...],
    inverse: NDArray[np.float64],  # (d d,) out: its lower triangle
) -> None:
    """Inverse of a lower triangle."""
    n_dims = len(dims)
    for j in range(n_dims):
        diagonal = 1.0 / np.float64(triangles[at + entry(j, j)])
        for i in range(j):
            value = 0.0
            for m in range(i, j):
                value += np.float64(triangles[at + entry(j, m)]) * inverse[m * n_dims + i]
            inverse[j * n_dims + i] = -value * diagonal
        inverse[j * n_dims + j] = diagonal


@kernel
def congruence(
    triangle: NDArray[np.float64],  # (d d,) lower triangle T
    matrix: NDArray[np.float64],  # (d d,) symmetric C, becomes T C Tᵀ
    dims: tuple[float, ...],
    scratch: NDArray[np.float64],  # (d d,)
) -> None:
    """Replace the symmetric matrix C by T C Tᵀ."""
    n_dims = len(dims)
    for j in range(n_dims):
        for i in range(n_dims):
            value = 0.0
            for m in range(j + 1):
                value += triangle[j * n_dims + m] * matrix[m * n_dims + i]
            scratch[j * n_dims + i] = value
    for j in range(n_dims):
        for i in range(n_dims):
            value = 0.0
            for m in range(i + 1):
                value += scratch[j * n_dims + m] * triangle[i * n_dims + m]
            matrix[j * n_dims + i] = value


@kernel
def cholesky(
    covariance: NDArray[np.float64],  # (d d,)
    dims: tuple[float, ...],
    settings: EMSettings,
    mixture: NDArray[np.float64],  # (K n_numbers,) out from `at` on: the factor
    at: int,
) -> float:
    """Cholesky factor of the regularised covariance, pivots clamped from below; returns the root of its determinant."""
    n_dims = len(dims)
    root_determinant = 1.0
    for j in range(n_dims):
        for i in range(j + 1):
            pivot = covariance[j * n_dims + i]
            for m in range(i):
                pivot -= mixture[at + entry(j, m)] * mixture[at + entry(i, m)]
            if i < j:
                mixture[at + entry(j, i)] = pivot / mixture[at + entry(i, i)]
            else:
                root = math.sqrt(max(pivot + settings.reg_covar, settings.min_pivot))
                mixture[at + entry(j, j)] = root
                root_determinant *= root
    return root_determinant


@kernel
def prepare(
    mixture: NDArray[np.float64],  # (K n_numbers,)
    base: int,  # where the component begins
    dims: tuple[float, ...],
    inverse: NDArray[np.float64],  # (d d,) scratch
    constants: NDArray,  # (K n_numbers,) real, out but for h
) -> None:
    """A = √(log2(e) / 2) L⁻¹ and b = −A μ, the latter with the rounded A."""
    n_dims = len(dims)
    first, second = base + 1, base + 1 + n_dims
    invert_triangle(mixture, second, dims, inverse)
    for j in range(n_dims):
        b = 0.0
        for i in range(j + 1):
            constants[second + entry(j, i)] = _ROOT_HALF_LOG2_E * inverse[j * n_dims + i]
            b -= np.float64(constants[second + entry(j, i)]) * mixture[first + i]
        constants[first + j] = b
