"""The mixture sweep on the CPU: compiled kernels without the interpreter's lock, fed to threads in small blocks.

Two rounds. The first standardises the filters; the second fits pairs (filter, K), filter by filter, the largest K
first. A block is a run of filters or pairs; threads take the next one when they are done, and an interrupt stops the
work after the current blocks. Every pair is computed on its own from its filter's samples and its own random numbers,
so that no result depends on how pairs are spread over blocks and threads.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gmmcnn import constants
from gmmcnn.constants import CH_ROUNDING, MIN_VARIANCE
from gmmcnn.hardware import vectors
from gmmcnn.hardware.compiled import compiled_entry, kernel
from gmmcnn.hardware.threads import for_blocks
from gmmcnn.hardware.vectors import aligned_empty, flush_denormals, lanes, restore_mode
from gmmcnn.mixture import cpu_em, cpu_layout, cpu_start
from gmmcnn.mixture.calinski_harabasz import choose_n_components
from gmmcnn.mixture.cpu_em import (  # fmt: skip
    block_size,
    expect_and_maximise,
    hard_sums,
    maximise,
    predict,
    set_centres,
    set_nothing,
)
from gmmcnn.mixture.cpu_layout import EMSettings, Samples, Workspace, entry, n_numbers
from gmmcnn.mixture.cpu_start import lloyd, mean_centres, seed_centres
from gmmcnn.mixture.problem import MixtureSettings, StandardisedFits, SweepResult, in_units_of_scores

MAX_EXPONENT = 1022
"""Of a power of two that float64 holds, with either sign."""

SAMPLES_PER_BLOCK = 64_000
"""Samples times starts that a thread fits before it looks for an interrupt."""


class Filters(NamedTuple):
    """Standardised samples of F filters."""

    points: NDArray
    """(F, d stride) real: see :class:`gmmcnn.mixture.cpu_layout.Samples`."""
    n_samples: int
    """N"""
    stride: int
    dims: tuple[float, ...]
    keys: NDArray[np.uint64]
    """(F,)"""
    is_given: NDArray[np.bool_]
    """(k_max + 1,) whether EM starts from given labels for this K."""
    given: NDArray[np.int8]
    """(F, n_k, N) those labels; (0, 0, 0) where there are none."""


class Fits(NamedTuple):
    """Where the fits of all pairs (filter, K) are written to, K = k_min + i."""

    calinski_harabasz: NDArray[np.float64]
    """(F, n_k)"""
    lower_bound: NDArray[np.float64]
    """(F, n_k)"""
    n_iter: NDArray[np.int32]
    """(F, n_k)"""
    converged: NDArray[np.bool_]
    """(F, n_k)"""
    labels: NDArray[np.int8]
    """(F, n_k, N)"""
    mixtures: NDArray[np.float64]
    """(F, n_k, k_max n_numbers)"""


def fit_mixtures(
    scores: NDArray, keys: NDArray[np.uint64], settings: MixtureSettings, initial_labels: Mapping[int, NDArray]
) -> SweepResult:
    """Fit every K of the sweep to every filter and choose K: :func:`gmmcnn.mixture.reference.fit_mixtures`, fast."""
    n_filters, n_samples, n_dims = scores.shape
    counts = settings.component_counts
    n_k, k_max = len(counts), settings.k_max
    dtype = np.dtype(settings.dtype)
    stride = -(-n_samples // lanes(dtype)) * lanes(dtype)
    scores = np.ascontiguousarray(scores)

    given = np.zeros((n_filters, n_k, n_samples) if initial_labels else (0, 0, 0), dtype=np.int8)
    for k, start in initial_labels.items():
        given[:, k - settings.k_min] = start
    filters = Filters(
        points=aligned_empty(n_filters * n_dims * stride, dtype).reshape(n_filters, n_dims * stride),
        n_samples=n_samples,
        stride=stride,
        dims=(0.0,) * n_dims,
        keys=keys,
        is_given=np.array([k in initial_labels for k in range(k_max + 1)]),
        given=given,
    )
    centre, scale = np.zeros((n_filters, n_dims)), np.ones(n_filters)
    n_distinct = np.zeros(n_filters, dtype=np.int64)
    for_blocks(
        lambda first, last: standardise(
            scores, first, last, k_max + 1, float(np.finfo(scores.dtype).eps), filters, centre, scale, n_distinct
        ),
        n_filters,
        settings.threads,
    )

    largest_first = np.array(counts)[::-1]
    rows, columns = np.nonzero(largest_first <= n_distinct[:, None])
    pairs = np.stack([rows, largest_first[columns]], axis=1)
    fits = Fits(
        calinski_harabasz=np.full((n_filters, n_k), np.nan),
        lower_bound=np.full((n_filters, n_k), np.nan),
        n_iter=np.zeros((n_filters, n_k), dtype=np.int32),
        converged=np.zeros((n_filters, n_k), dtype=bool),
        labels=np.full((n_filters, n_k, n_samples), -1, dtype=np.int8),
        mixtures=np.full((n_filters, n_k, k_max * n_numbers(n_dims)), np.nan),
    )
    em_settings = EMSettings(
        k_min=settings.k_min,
        n_init=settings.n_init,
        tol=settings.tol,
        max_iter=settings.max_iter,
        reg_covar=settings.reg_covar,
        min_pivot=max(settings.reg_covar, MIN_VARIANCE),
        seed=np.uint64(settings.seed),
        precision=settings.precision(scores.dtype),
    )
    for_blocks(
        lambda first, last: fit_pairs(
            pairs[first:last], filters, em_settings, workspace(n_dims, k_max, stride, dtype), fits
        ),
        len(pairs),
        settings.threads,
        largest_block=SAMPLES_PER_BLOCK // (n_samples * settings.n_init),
    )
    chosen = choose_n_components(fits.calinski_harabasz, settings.k_min)
    every, which = np.arange(n_filters), np.maximum(chosen - settings.k_min, 0)
    return in_units_of_scores(
        settings,
        StandardisedFits(
            calinski_harabasz=fits.calinski_harabasz,
            lower_bound=fits.lower_bound,
            n_iter=fits.n_iter,
            converged=fits.converged,
            n_components=chosen,
            labels=fits.labels[every, which],
            mixtures=fits.mixtures[every, which].reshape(n_filters, k_max, n_numbers(n_dims)),
            centre=centre,
            scale=scale,
            n_distinct=n_distinct,
        ),
    )


def workspace(n_dims: int, k_max: int, stride: int, dtype: np.dtype) -> Workspace:
    """Uninitialised."""
    numbers = k_max * n_numbers(n_dims)
    return Workspace(
        mixture=np.empty(numbers),
        constants=np.empty(numbers, dtype),
        best_constants=np.empty(numbers, dtype),
        sums=np.empty(numbers),
        centres=np.empty(k_max * n_dims, dtype),
        labels=aligned_empty(stride, dtype),
        nearest=aligned_empty(stride, dtype),
        vector_sums=np.empty(stride),
        block=aligned_empty(block_size(n_dims, k_max, dtype.itemsize), dtype),
        squares=np.empty(3 * n_dims * n_dims),
    )


@compiled_entry(cpu_em, cpu_layout, cpu_start, vectors, constants)
def standardise(  # noqa: C901, PLR0917 - loops of one pass; what it writes is given one by one
    scores: NDArray,  # (F, N, d) float32 or float64
    begin: int,
    end: int,
    max_distinct: int,
    precision: float,  # of the scores' dtype
    filters: Filters,  # points: out
    centre: NDArray[np.float64],  # (F, d) out
    scale: NDArray[np.float64],  # (F,) out
    n_distinct: NDArray[np.int64],  # (F,) out, up to max_distinct
) -> None:
    """Write ``(scores - centre) / scale`` as rows of padded vectors, and the number of distinct points up to a limit.

    Filters whose scores do not vary get 0 distinct points. Sums and squares are those of scores divided by a power of
    two.
    """
    points, n_samples, stride = filters.points, filters.n_samples, filters.stride
    n_dims = len(filters.dims)
    distinct = np.empty(max_distinct, dtype=np.int64)
    for f in range(begin, end):
        largest, widest, variance = 0.0, 0.0, 0.0
        for j in range(n_dims):
            first = np.float64(scores[f, 0, j])
            for n in range(n_samples):
                largest = max(largest, abs(np.float64(scores[f, n, j])))
                widest = max(widest, abs(scores[f, n, j] - first))
        if widest <= precision * largest:
            continue
        exponent = min(math.frexp(largest)[1], MAX_EXPONENT)
        unit = math.ldexp(1.0, exponent)
        factor = math.ldexp(1.0, -exponent)
        for j in range(n_dims):
            mean = 0.0
            for n in range(n_samples):
                mean += scores[f, n, j] * factor
            mean /= n_samples
            centre[f, j] = mean
            for n in range(n_samples):
                offset = scores[f, n, j] * factor - mean
                variance += offset * offset
        scale[f] = math.sqrt(variance / (n_samples * n_dims))
        for j in range(n_dims):
            for n in range(n_samples):
                points[f, j * stride + n] = (scores[f, n, j] * factor - centre[f, j]) / scale[f]
            for n in range(n_samples, stride):
                points[f, j * stride + n] = 0
            centre[f, j] *= unit
        scale[f] *= unit
        n_distinct[f] = count_distinct(scores[f], distinct)


@kernel
def count_distinct(
    scores: NDArray,  # (N, d)
    distinct: NDArray[np.int64],  # (limit,) out: the samples that differ from all before
) -> int:
    """Number of distinct rows, counted no further than the room for their indices."""
    count = 0
    for n in range(len(scores)):
        known = False
        for i in range(count):
            same = True
            for j in range(scores.shape[1]):
                same &= scores[n, j] == scores[distinct[i], j]
            known |= same
        if not known:
            distinct[count] = n
            count += 1
            if count == len(distinct):
                break
    return count


@compiled_entry(cpu_em, cpu_layout, cpu_start, vectors, constants)
def fit_pairs(
    pairs: NDArray[np.int64],  # (n_pairs, 2) filter and K
    filters: Filters,
    settings: EMSettings,
    workspace: Workspace,
    fits: Fits,  # out
) -> None:
    """Fit the mixtures of some pairs (filter, K): the best of the starts, its labels, its index."""
    n_samples, dims = filters.n_samples, filters.dims
    mode = flush_denormals()
    for p in range(len(pairs)):
        f, k = pairs[p]
        i = k - settings.k_min
        samples = Samples(filters.points[f], n_samples, filters.stride, dims)
        best = -np.inf
        for start in range(1 if filters.is_given[k] else settings.n_init):
            if filters.is_given[k]:
                take_labels(filters.given[f, i], workspace.labels)
                mean_centres(samples, k, workspace)
            else:
                seed_centres(samples, k, settings.seed, filters.keys[f], start, workspace)
                lloyd(samples, k, workspace)
            bound, n_iter, converged = expectation_maximisation(samples, k, settings, workspace)
            if start == 0 or bound > best:
                best = bound
                fits.lower_bound[f, i], fits.n_iter[f, i], fits.converged[f, i] = bound, n_iter, converged
                copy(workspace.constants, workspace.best_constants, k * n_numbers(len(dims)))
                copy(workspace.mixture, fits.mixtures[f, i], k * n_numbers(len(dims)))
        predict(samples, k, workspace.best_constants, workspace.labels)
        for n in range(n_samples):
            fits.labels[f, i, n] = np.int8(workspace.labels[n])
        fits.calinski_harabasz[f, i] = calinski_harabasz(samples, k, settings.precision, workspace)
    restore_mode(mode)


@kernel
def take_labels(given: NDArray[np.int8], labels: NDArray) -> None:
    """Given labels (N,) as the kernels hold them (stride,)."""
    for n in range(len(labels)):
        labels[n] = given[n] if n < len(given) else -1


@kernel
def copy(source: NDArray, target: NDArray, size: int) -> None:
    """Copy the first numbers of a flat array."""
    for i in range(size):
        target[i] = source[i]


@kernel
def expectation_maximisation(
    samples: Samples, n_components: int, settings: EMSettings, workspace: Workspace
) -> tuple[float, int, bool]:
    """EM from hard labels, whose means the centres are near. Returns lower bound, iterations, whether it converged."""
    set_nothing(samples.dims, n_components, settings.min_pivot, workspace)
    set_centres(samples.dims, n_components, workspace)
    hard_sums(samples, n_components, workspace)
    shift = maximise(samples, n_components, settings, workspace)
    lower_bound = -np.inf
    for iteration in range(1, settings.max_iter + 1):
        previous = lower_bound
        log2_likelihood = expect_and_maximise(samples, n_components, workspace)
        lower_bound = (log2_likelihood / samples.n_samples + shift) * math.log(2.0)
        shift = maximise(samples, n_components, settings, workspace)
        if abs(lower_bound - previous) < settings.tol:
            return lower_bound, iteration, True
    return lower_bound, settings.max_iter, False


@kernel
def calinski_harabasz(samples: Samples, n_components: int, precision: float, workspace: Workspace) -> float:
    """Index of the labelling; NaN and infinite where :func:`gmmcnn.mixture.calinski_harabasz.calinski_harabasz` is.

    Offsets from the cluster means, nearly, are what is squared and added up; what is left of their means is put right
    after.
    """
    n_samples, n_dims = samples.n_samples, len(samples.dims)
    centres, sums = workspace.centres, workspace.sums
    mean_centres(samples, n_components, workspace)
    set_centres(samples.dims, n_components, workspace)
    hard_sums(samples, n_components, workspace)
    n_clusters, within, between, rounding = 0, 0.0, 0.0, 0.0
    perfect = True
    for k in range(n_components):
        n_clusters += sums[k * n_numbers(n_dims)] > 0
    for j in range(n_dims):
        grand = 0.0
        for k in range(n_components):
            base = k * n_numbers(n_dims)
            grand += sums[base] * centres[k * n_dims + j] + sums[base + 1 + j]
        grand /= n_samples
        for k in range(n_components):
            base = k * n_numbers(n_dims)
            size = sums[base]
            if size > 0:
                correction = sums[base + 1 + j] / size
                spread = sums[base + 1 + n_dims + entry(j, j)] - size * correction * correction
                distance = size * (centres[k * n_dims + j] + correction - grand) ** 2
                within += spread
                between += distance
                least = (CH_ROUNDING * precision) ** 2 * (spread + distance)
                perfect &= spread <= least
                rounding += least
    if n_clusters < 2 or n_clusters >= n_samples or between <= rounding:
        return np.nan
    if perfect:
        return np.inf
    return between * (n_samples - n_clusters) / (within * (n_clusters - 1))
