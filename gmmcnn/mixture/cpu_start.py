"""The start of EM on the CPU: Philox, k-means++ and Lloyd, compiled; what :mod:`gmmcnn.mixture.initialise` defines.

Arrays lie as :mod:`gmmcnn.mixture.cpu_layout` says.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gmmcnn.constants import LLOYD_MAX_ITER, LLOYD_TOL, PHILOX_KEY_STEPS, PHILOX_MULTIPLIERS, PHILOX_ROUNDS
from gmmcnn.hardware.compiled import kernel
from gmmcnn.hardware.vectors import (  # fmt: skip
    fma,
    lane_numbers,
    lanes_of,
    load,
    minimum,
    registers,
    splat,
    store,
    total,
    where,
)
from gmmcnn.mixture.cpu_layout import FOLD_VECTORS, Samples, Workspace

_WORD = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_MULTIPLIER_0, _MULTIPLIER_1 = (np.uint64(m) for m in PHILOX_MULTIPLIERS)
_STEP_0, _STEP_1 = (np.uint64(s) for s in PHILOX_KEY_STEPS)


@kernel
def uniform(seed: np.uint64, key: np.uint64, n_components: int, start: int, draw: int) -> float:
    """One draw of :func:`gmmcnn.mixture.random_numbers.uniforms`."""
    c0, c1 = np.uint64(draw // 4), np.uint64(start * 64 + n_components)
    c2, c3 = seed & _WORD, seed >> _HALF
    k0, k1 = key & _WORD, key >> _HALF
    for _ in range(PHILOX_ROUNDS):
        product0, product1 = _MULTIPLIER_0 * c0, _MULTIPLIER_1 * c2
        c0, c1 = (product1 >> _HALF) ^ c1 ^ k0, product1 & _WORD
        c2, c3 = (product0 >> _HALF) ^ c3 ^ k1, product0 & _WORD
        k0, k1 = (k0 + _STEP_0) & _WORD, (k1 + _STEP_1) & _WORD
    which = draw % 4
    word = c0 if which == 0 else c1 if which == 1 else c2 if which == 2 else c3
    return (np.float64(word) + 0.5) / 4294967296.0


@kernel
def squared_distance(
    points: NDArray,  # (d stride,) real
    stride: int,
    dims: tuple[float, ...],
    at: int,
    centre: Any,  # registers: its d coordinates
) -> Any:
    """Squared distances of a vector of samples from a centre."""
    offset = load(points, at) - centre[0]
    distance = offset * offset
    for j in range(1, len(dims)):
        offset = load(points, at + j * stride) - centre[j]
        distance = fma(offset, offset, distance)
    return distance


@kernel
def seed_centres(
    samples: Samples, n_components: int, seed: np.uint64, key: np.uint64, start: int, workspace: Workspace
) -> None:
    """k-means++: write K samples, far from each other, to the centres."""
    points, n_samples, stride, dims = samples
    centres = workspace.centres
    n_dims = len(dims)
    n_trials = 2 + int(math.log(n_components))
    chosen = int(uniform(seed, key, n_components, start, 0) * n_samples)
    for j in range(n_dims):
        centres[j] = points[j * stride + chosen]
    potential = move_nearer(
        samples, chosen, is_first=True, nearest=workspace.nearest, vector_sums=workspace.vector_sums
    )
    for c in range(1, n_components):
        best, best_potential = 0, np.inf
        for trial in range(n_trials):
            u = uniform(seed, key, n_components, start, 1 + (c - 1) * n_trials + trial)
            candidate = draw_sample(n_samples, u, potential, workspace.nearest, workspace.vector_sums)
            left = potential_with(samples, candidate, workspace.nearest)
            if left < best_potential:
                best, best_potential = candidate, left
        for j in range(n_dims):
            centres[c * n_dims + j] = points[j * stride + best]
        potential = move_nearer(
            samples, best, is_first=False, nearest=workspace.nearest, vector_sums=workspace.vector_sums
        )


@kernel
def draw_sample(
    n_samples: int,
    u: float,
    potential: float,
    nearest: NDArray,  # (stride,) real
    vector_sums: NDArray[np.float64],  # (stride,)
) -> int:
    """First sample whose cumulative squared distance exceeds ``u * potential``."""
    n_lanes = lanes_of(nearest)
    if potential <= 0:
        return min(int(u * n_samples), n_samples - 1)
    target, cumulative, v = u * potential, 0.0, 0
    n_vectors = (n_samples + n_lanes - 1) // n_lanes
    while v < n_vectors - 1 and cumulative + vector_sums[v] <= target:
        cumulative += vector_sums[v]
        v += 1
    n = v * n_lanes
    while n < n_samples - 1:
        cumulative += nearest[n]
        if cumulative > target:
            break
        n += 1
    return n


@kernel
def move_nearer(
    samples: Samples,
    chosen: int,
    is_first: bool,  # noqa: FBT001 - Numba knows no arguments by keyword only
    nearest: NDArray,  # (stride,) real
    vector_sums: NDArray[np.float64],  # (stride,)
) -> float:
    """Take a sample as a further centre: update the distances from the nearest and return their sum."""
    points, n_samples, stride, dims = samples
    n_lanes = lanes_of(points)
    lane = lane_numbers(load(points, 0))
    zero = splat(points.dtype.type(0))
    centre = registers(zero)
    for j in range(len(dims)):
        centre[j] = splat(points[j * stride + chosen])
    potential = 0.0
    for at in range(0, n_samples, n_lanes):
        distance = squared_distance(points, stride, dims, at, centre)
        if is_first:
            distance = where(lane < splat(points.dtype.type(n_samples - at)), distance, zero)
        else:
            distance = minimum(distance, load(nearest, at))
        store(nearest, at, distance)
        vector_sums[at // n_lanes] = total(distance)
        potential += vector_sums[at // n_lanes]
    return potential


@kernel
def potential_with(
    samples: Samples,
    candidate: int,
    nearest: NDArray,  # (stride,) real
) -> float:
    """Sum of squared distances if the sample ``candidate`` were a further centre."""
    points, n_samples, stride, dims = samples
    n_lanes = lanes_of(points)
    zero = splat(points.dtype.type(0))
    centre = registers(zero)
    for j in range(len(dims)):
        centre[j] = splat(points[j * stride + candidate])
    potential = 0.0
    for fold in range(0, n_samples, FOLD_VECTORS * n_lanes):
        partial = zero
        for at in range(fold, min(fold + FOLD_VECTORS * n_lanes, n_samples), n_lanes):
            partial = partial + minimum(squared_distance(points, stride, dims, at, centre), load(nearest, at))
        potential += total(partial)
    return potential


@kernel
def lloyd(samples: Samples, n_components: int, workspace: Workspace) -> None:
    """Iterate from the centres, which move; write the final labels."""
    centres, labels, sums = workspace.centres, workspace.labels, workspace.sums
    n_dims = len(samples.dims)
    for _ in range(LLOYD_MAX_ITER):
        assign(samples, n_components, centres, labels)
        add_up(samples, n_components, labels, sums)
        moved = 0.0
        for k in range(n_components):
            size = sums[k * (n_dims + 1)]
            if size > 0:
                for j in range(n_dims):
                    centre = centres.dtype.type(sums[k * (n_dims + 1) + 1 + j] / size)
                    moved += (np.float64(centre) - np.float64(centres[k * n_dims + j])) ** 2
                    centres[k * n_dims + j] = centre
        if moved <= LLOYD_TOL:
            break
    assign(samples, n_components, centres, labels)


@kernel
def assign(
    samples: Samples,
    n_components: int,
    centres: NDArray,  # (K d,) real
    labels: NDArray,  # (stride,) real, out
) -> None:
    """Label every sample with its nearest centre; lanes beyond the last sample get -1."""
    points, n_samples, stride, dims = samples
    n_lanes = lanes_of(points)
    n_dims = len(dims)
    lane = lane_numbers(load(points, 0))
    centre = registers(lane)
    for at in range(0, n_samples, n_lanes):
        for j in range(n_dims):
            centre[j] = splat(centres[j])
        least = squared_distance(points, stride, dims, at, centre)
        label = splat(points.dtype.type(0))
        for k in range(1, n_components):
            for j in range(n_dims):
                centre[j] = splat(centres[k * n_dims + j])
            distance = squared_distance(points, stride, dims, at, centre)
            nearer = distance < least
            least = where(nearer, distance, least)
            label = where(nearer, splat(points.dtype.type(k)), label)
        valid = lane < splat(points.dtype.type(n_samples - at))
        store(labels, at, where(valid, label, splat(points.dtype.type(-1))))


@kernel
def add_up(
    samples: Samples,
    n_components: int,
    labels: NDArray,  # (stride,) real
    sums: NDArray[np.float64],  # (K (1 + d),) out
) -> None:
    """Size and sum of samples of every cluster."""
    points, n_samples, stride, dims = samples
    n_lanes = lanes_of(points)
    n_dims = len(dims)
    zero, one = splat(points.dtype.type(0)), splat(points.dtype.type(1))
    partial = registers(zero)
    for i in range(n_components * (n_dims + 1)):
        sums[i] = 0.0
    for fold in range(0, n_samples, FOLD_VECTORS * n_lanes):
        end = min(fold + FOLD_VECTORS * n_lanes, n_samples)
        for k in range(n_components):
            number = splat(points.dtype.type(k))
            for i in range(n_dims + 1):
                partial[i] = zero
            for at in range(fold, end, n_lanes):
                member = load(labels, at) == number
                partial[0] = where(member, partial[0] + one, partial[0])
                for j in range(n_dims):
                    partial[1 + j] = where(member, partial[1 + j] + load(points, at + j * stride), partial[1 + j])
            for i in range(n_dims + 1):
                sums[k * (n_dims + 1) + i] += total(partial[i])


@kernel
def mean_centres(samples: Samples, n_components: int, workspace: Workspace) -> None:
    """Centres at the means of the labelled samples, 0 where there are none."""
    n_dims = len(samples.dims)
    sums = workspace.sums
    add_up(samples, n_components, workspace.labels, sums)
    for k in range(n_components):
        size = max(sums[k * (n_dims + 1)], 1.0)
        for j in range(n_dims):
            workspace.centres[k * n_dims + j] = sums[k * (n_dims + 1) + 1 + j] / size
