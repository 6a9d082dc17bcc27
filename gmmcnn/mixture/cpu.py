"""The mixture sweep on the CPU: compiled kernels without the interpreter's lock, fed to threads in small blocks.

Two rounds. The first standardises the filters; the second fits pairs (filter, K), filter by filter, the largest K
first. A block is a run of filters or pairs; threads take the next one when they are done, and an interrupt stops the
work after the current blocks. Every pair is computed on its own from its filter's samples and its own random numbers,
so that no result depends on how pairs are spread over blocks and threads.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gmmcnn import constants
from gmmcnn.constants import CH_MIN_WITHIN, DEAD_RANGE, MIN_VARIANCE
from gmmcnn.hardware import vectors
from gmmcnn.hardware.compiled import compiled_entry, kernel
from gmmcnn.hardware.threads import for_blocks
from gmmcnn.hardware.vectors import aligned_empty, flush_denormals, lanes, restore_mode
from gmmcnn.mixture import cpu_em, cpu_start
from gmmcnn.mixture.calinski_harabasz import choose_n_components
from gmmcnn.mixture.cpu_em import (  # fmt: skip
    centre_constants,
    expect_and_maximise,
    hard_sums,
    predict,
    update,
    work_size,
)
from gmmcnn.mixture.cpu_start import add_up, kmeans_plusplus, lloyd
from gmmcnn.mixture.problem import DEAD, OK, TOO_FEW_DISTINCT, UNDEFINED, MixtureSettings, SweepResult

SAMPLES_PER_BLOCK = 64_000
"""Samples times starts that a thread fits before it looks for an interrupt."""


def fit_mixtures(
    scores: NDArray, keys: NDArray[np.uint64], settings: MixtureSettings, initial_labels: Mapping[int, NDArray]
) -> SweepResult:
    """Fit every K of the sweep to every filter and choose K: :func:`gmmcnn.mixture.reference.fit_mixtures`, fast."""
    n_filters, n_samples, n_dims = scores.shape
    counts = settings.component_counts
    n_k, k_max = len(counts), settings.k_max
    dtype = np.dtype(settings.dtype)
    stride = -(-n_samples // lanes(dtype)) * lanes(dtype)
    dims = (0.0,) * n_dims
    scores = np.ascontiguousarray(scores)

    points = aligned_empty(n_filters * n_dims * stride, dtype).reshape(n_filters, n_dims * stride)
    centre = np.zeros((n_filters, n_dims))
    scale = np.ones(n_filters)
    n_distinct = np.zeros(n_filters, dtype=np.int64)
    for_blocks(
        lambda first, last: standardise(
            scores, first, last, k_max + 1, stride, dims, points, centre, scale, n_distinct
        ),
        n_filters,
        settings.threads,
    )

    fitted = n_distinct >= settings.k_min
    largest_first = np.array(counts)[::-1]
    filters, columns = np.nonzero(largest_first <= n_distinct[:, None])
    pairs = np.stack([filters, largest_first[columns]], axis=1)
    given = np.array([k in initial_labels for k in range(k_max + 1)])
    initial = np.zeros((n_filters, n_k, n_samples) if initial_labels else (0, 0, 0), dtype=np.int8)
    for k, start in initial_labels.items():
        initial[:, k - settings.k_min] = start
    index = np.full((n_filters, n_k), np.nan)
    lower_bound = np.full((n_filters, n_k), np.nan)
    n_iter = np.zeros((n_filters, n_k), dtype=np.int32)
    converged = np.zeros((n_filters, n_k), dtype=bool)
    labels = np.full((n_filters, n_k, n_samples), -1, dtype=np.int8)
    weights = np.full((n_filters, n_k, k_max), np.nan)
    means = np.full((n_filters, n_k, k_max * n_dims), np.nan)
    factors = np.full((n_filters, n_k, k_max * n_dims * n_dims), np.nan)

    def fit(first: int, last: int) -> None:
        fit_pairs(
            pairs[first:last], points, n_samples, stride, dims, settings.k_min, settings.n_init, settings.tol,
            settings.max_iter, settings.reg_covar, np.uint64(settings.seed), keys, given, initial,
            aligned_empty(work_size(n_dims, k_max, dtype.itemsize), dtype), aligned_empty(3 * stride, dtype),
            index, lower_bound, n_iter, converged, labels, weights, means, factors,
        )  # fmt: skip

    largest_block = SAMPLES_PER_BLOCK // (n_samples * settings.n_init)
    for_blocks(fit, len(pairs), settings.threads, largest_block=largest_block)
    lower_bound -= n_dims * np.log(scale)[:, None]
    chosen = choose_n_components(index, settings.k_min)
    status = np.where(chosen > 0, OK, np.where(n_distinct == 0, DEAD, np.where(fitted, UNDEFINED, TOO_FEW_DISTINCT)))
    which = np.maximum(chosen - settings.k_min, 0)
    every = np.arange(n_filters)
    factor = factors[every, which].reshape(n_filters, k_max, n_dims, n_dims)
    none = chosen == 0
    for array in (weights, means, factor):
        array[none] = np.nan
    return SweepResult(
        status=status.astype(np.int8),
        calinski_harabasz=index,
        lower_bound=lower_bound,
        n_iter=n_iter,
        converged=converged,
        n_components=chosen,
        labels=np.where(none[:, None], np.int8(-1), labels[every, which]),
        weights=weights[every, which],
        means=means[every, which].reshape(n_filters, k_max, n_dims) * scale[:, None, None] + centre[:, None],
        covariances=factor @ factor.swapaxes(2, 3) * scale[:, None, None, None] ** 2,
    )


@compiled_entry(cpu_em, cpu_start, vectors, constants)
def standardise(
    scores: Any, begin: Any, end: Any, max_distinct: Any, stride: Any, dims: Any, points: Any, centre: Any, scale: Any,
    n_distinct: Any,
) -> None:  # fmt: skip
    """Write ``(scores - centre) / scale`` as rows of padded vectors, and the number of distinct points up to a limit.

    Filters whose scores do not vary get 0 distinct points.
    """
    n_samples, n_dims = scores.shape[1], len(dims)
    distinct = np.empty(max_distinct, dtype=np.int64)
    for f in range(begin, end):
        largest, widest, variance = 0.0, 0.0, 0.0
        for j in range(n_dims):
            mean = 0.0
            for n in range(n_samples):
                mean += scores[f, n, j]
            mean /= n_samples
            centre[f, j] = mean
            for n in range(n_samples):
                offset = scores[f, n, j] - mean
                variance += offset * offset
                widest = max(widest, abs(offset))
                largest = max(largest, abs(np.float64(scores[f, n, j])))
        if widest <= DEAD_RANGE * largest:
            continue
        scale[f] = math.sqrt(variance / (n_samples * n_dims))
        for j in range(n_dims):
            for n in range(n_samples):
                points[f, j * stride + n] = (scores[f, n, j] - centre[f, j]) / scale[f]
            for n in range(n_samples, stride):
                points[f, j * stride + n] = 0
        n_distinct[f] = count_distinct(scores[f], distinct)


@kernel
def count_distinct(samples: Any, distinct: Any) -> Any:
    """Number of distinct rows, counted no further than the room for their indices."""
    count = 0
    for n in range(len(samples)):
        known = False
        for i in range(count):
            same = True
            for j in range(samples.shape[1]):
                same &= samples[n, j] == samples[distinct[i], j]
            known |= same
        if not known:
            distinct[count] = n
            count += 1
            if count == len(distinct):
                break
    return count


@compiled_entry(cpu_em, cpu_start, vectors, constants)
def fit_pairs(
    pairs: Any, points: Any, n_samples: Any, stride: Any, dims: Any, k_min: Any, n_init: Any, tol: Any, max_iter: Any,
    reg_covar: Any, seed: Any, keys: Any, given: Any, initial: Any, work: Any, rows: Any, index: Any, lower_bound: Any,
    n_iter: Any, converged: Any, labels: Any, weights: Any, means: Any, factors: Any,
) -> None:  # fmt: skip
    """Fit the mixtures of some pairs (filter, K)."""
    n_dims = len(dims)
    n_numbers = 1 + n_dims + n_dims * (n_dims + 1) // 2
    k_max = weights.shape[2]
    sums = np.empty(k_max * n_numbers)
    scratch = np.empty(3 * n_dims * n_dims)
    label_row, nearest = rows[:stride], rows[stride : 2 * stride]
    vector_sums = np.empty(stride)
    centres = np.empty(k_max * n_dims, dtype=points.dtype)
    constants = np.empty(k_max * n_numbers, dtype=points.dtype)
    best_constants = np.empty(k_max * n_numbers, dtype=points.dtype)
    weight, mean, factor = np.empty(k_max), np.empty(k_max * n_dims), np.empty(k_max * n_dims * n_dims)
    min_pivot = max(reg_covar, MIN_VARIANCE)
    mode: Any = flush_denormals()
    for p in range(len(pairs)):
        f, k = pairs[p]
        i = k - k_min
        samples = points[f]
        best = -np.inf
        for start in range(1 if given[k] else n_init):
            if given[k]:
                for n in range(n_samples):
                    label_row[n] = initial[f, i, n]
                for n in range(n_samples, stride):
                    label_row[n] = -1
                add_up(samples, n_samples, stride, dims, k, label_row, sums)
                for c in range(k):
                    for j in range(n_dims):
                        size = max(sums[c * (n_dims + 1)], 1.0)
                        centres[c * n_dims + j] = sums[c * (n_dims + 1) + 1 + j] / size
            else:
                kmeans_plusplus(
                    samples, n_samples, stride, dims, k, seed, keys[f], start, centres, nearest, vector_sums
                )
                lloyd(samples, n_samples, stride, dims, k, centres, label_row, sums)
            bound, iterations, settled = expectation_maximisation(
                samples, n_samples, stride, dims, k, label_row, centres, tol, max_iter, reg_covar, min_pivot,
                constants, sums, scratch, work, weight, mean, factor,
            )  # fmt: skip
            if start == 0 or bound > best:
                best = bound
                lower_bound[f, i], n_iter[f, i], converged[f, i] = bound, iterations, settled
                copy(constants, best_constants, k * n_numbers)
                copy(weight, weights[f, i], k)
                copy(mean, means[f, i], k * n_dims)
                copy(factor, factors[f, i], k * n_dims * n_dims)
        predict(samples, n_samples, stride, dims, best_constants, k, label_row)
        for n in range(n_samples):
            labels[f, i, n] = np.int8(label_row[n])
        index[f, i] = calinski_harabasz(samples, n_samples, stride, dims, k, label_row, centres, constants, sums)
    restore_mode(mode)


@kernel
def copy(source: Any, target: Any, n_numbers: Any) -> None:
    """Copy the first numbers of a flat array."""
    for i in range(n_numbers):
        target[i] = source[i]


@kernel
def expectation_maximisation(
    points: Any, n_samples: Any, stride: Any, dims: Any, n_components: Any, labels: Any, centres: Any, tol: Any,
    max_iter: Any, reg_covar: Any, min_pivot: Any, constants: Any, sums: Any, scratch: Any, work: Any, weights: Any,
    means: Any, factors: Any,
) -> Any:  # fmt: skip
    """EM from hard labels; ``centres`` are near the means of the labels. Returns lower bound, iterations, converged."""
    n_dims = len(dims)
    for i in range(n_components * n_dims):
        means[i] = 0.0
    for i in range(n_components * n_dims * n_dims):
        factors[i] = 0.0
    for k in range(n_components):
        for j in range(n_dims):
            factors[(k * n_dims + j) * n_dims + j] = math.sqrt(min_pivot)
    centre_constants(dims, n_components, centres, constants)
    hard_sums(points, n_samples, stride, dims, constants, n_components, labels, sums)
    shift = update(
        sums, n_samples, dims, n_components, reg_covar, min_pivot, constants, weights, means, factors, scratch
    )
    lower_bound = -np.inf
    for iteration in range(1, max_iter + 1):
        previous = lower_bound
        log2_likelihood = expect_and_maximise(points, n_samples, stride, dims, constants, n_components, work, sums)
        lower_bound = (log2_likelihood / n_samples + shift) * math.log(2.0)
        shift = update(
            sums, n_samples, dims, n_components, reg_covar, min_pivot, constants, weights, means, factors, scratch
        )
        if abs(lower_bound - previous) < tol:
            return lower_bound, iteration, True
    return lower_bound, max_iter, False


@kernel
def calinski_harabasz(
    points: Any, n_samples: Any, stride: Any, dims: Any, n_components: Any, labels: Any, centres: Any, constants: Any,
    sums: Any,
) -> Any:  # fmt: skip
    """Index of one clustering; NaN where :func:`gmmcnn.mixture.calinski_harabasz.calinski_harabasz` is.

    Offsets from the cluster means, nearly, are what is squared and added up; what is left of their means is put right
    after. ``centres`` (K d) and ``constants`` are scratch.
    """
    n_dims = len(dims)
    n_numbers = 1 + n_dims + n_dims * (n_dims + 1) // 2
    add_up(points, n_samples, stride, dims, n_components, labels, sums)
    for k in range(n_components):
        for j in range(n_dims):
            centres[k * n_dims + j] = sums[k * (n_dims + 1) + 1 + j] / max(sums[k * (n_dims + 1)], 1.0)
    centre_constants(dims, n_components, centres, constants)
    hard_sums(points, n_samples, stride, dims, constants, n_components, labels, sums)
    n_clusters, within, between = 0, 0.0, 0.0
    for k in range(n_components):
        n_clusters += sums[k * n_numbers] > 0
    for j in range(n_dims):
        diagonal = 1 + n_dims + j * (j + 1) // 2 + j
        grand = 0.0
        for k in range(n_components):
            grand += sums[k * n_numbers] * centres[k * n_dims + j] + sums[k * n_numbers + 1 + j]
        grand /= n_samples
        for k in range(n_components):
            size = sums[k * n_numbers]
            if size > 0:
                correction = sums[k * n_numbers + 1 + j] / size
                within += sums[k * n_numbers + diagonal] - size * correction * correction
                between += size * (centres[k * n_dims + j] + correction - grand) ** 2
    if n_clusters < 2 or n_clusters >= n_samples or within <= CH_MIN_WITHIN * (within + between):
        return np.nan
    return between * (n_samples - n_clusters) / (within * (n_clusters - 1))
