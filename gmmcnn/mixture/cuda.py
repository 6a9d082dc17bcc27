"""The mixture sweep on a CUDA device: one launch fits every (filter, K, start), the next ones choose.

Per block of filters five launches: standardise the scores, fit (the whole of k-means and EM inside,
``kernels/gmm_em.cu``), label by the best start, index, choose K. Scores may lie in host memory or, as CuPy array or
torch tensor, on the device, where they are taken without a copy and on their owner's stream. Nothing returns to the
host before the last launch. Results do not depend on how filters are spread over blocks, nor on the device's size: the
number of threads, which fixes the order of sums, is a function of N alone.

Run so far on one card, an NVIDIA H200 (CUDA 13.0, CuPy 14.2), where it agrees with the reference. For all other
supported architectures the kernels are compiled, and the tests run their text, unchanged, on an emulated device.
"""

import importlib.util
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gmmcnn.constants import MAX_DIMS
from gmmcnn.errors import CaptureError
from gmmcnn.hardware import gpu
from gmmcnn.hardware.kernel_loader import kernel
from gmmcnn.mixture.problem import MixtureSettings, StandardisedFits, SweepResult, in_units_of_scores

TILE = 1024
"""Samples between two barriers (``kernels/common.cuh``): so many are summed in ``settings.dtype``, more in float64."""

MAX_THREADS = 256
"""Threads of a block, at most (``kernels/common.cuh``)."""

RESIDENT_BLOCKS = 4
"""Samples are kept in shared memory where it holds those of so many problems at once; else the L1 cache serves them."""

CHOOSE_THREADS = 128

CUML_MIN_SAMPLES = 2**14
"""Samples of a filter from which cuML may find its starts, where it is asked for."""


@gpu.engine_errors()
def fit_mixtures(
    scores: Any, keys: NDArray[np.uint64], settings: MixtureSettings, initial_labels: Mapping[int, NDArray]
) -> SweepResult:
    """Fit every K of the sweep to every filter and choose K: :func:`gmmcnn.mixture.reference.fit_mixtures` on a device.

    Parameters
    ----------
    scores : (F, N, d) float32 or float64
        Finite; a NumPy array, or an array or tensor in device memory.
    keys, settings, initial_labels
        As for the reference.

    Raises
    ------
    EngineError
        No device answers, or one filter does not fit into its memory.
    CaptureError
        A score is NaN or infinite; the message names filter and sample.
    """
    gpu.require()
    scores = gpu.without_gradients(scores)
    _check_shape(scores)
    n_samples, n_dims = scores.shape[1:]
    if len(scores) == 0:
        return _empty(n_samples, n_dims, settings)

    def fit(rows: slice, block: Any) -> tuple[NDArray, ...]:
        _check_finite(block, rows.start)
        given = {k: labels[rows] for k, labels in initial_labels.items()}
        return tuple(vars(_fit_block(block, keys[rows], settings, given)).values())

    with gpu.callers_stream(scores):
        blocks = gpu.map_blocks(scores, bytes_per_filter(n_samples, n_dims, settings), fit)
    return in_units_of_scores(settings, StandardisedFits(*gpu.concatenate(blocks)))


def bytes_per_filter(n_samples: int, n_dims: int, settings: MixtureSettings) -> int:
    """Device memory for one filter: scores and points, labels for each K (and given ones), mixtures of each start."""
    n_k = len(settings.component_counts)
    n_numbers = 1 + n_dims + n_dims * (n_dims + 1) // 2
    points = n_samples * n_dims * (16 + np.dtype(settings.dtype).itemsize)
    return points + 2 * n_k * n_samples + n_k * settings.n_init * (8 * settings.k_max * n_numbers + 13) + 1024


def n_threads(n_samples: int) -> int:
    """Threads for one problem; a function of N alone, since it fixes the order of sums."""
    return 64 if n_samples <= 256 else 128 if n_samples <= 4 * TILE else MAX_THREADS


def macros(n_samples: int, n_dims: int, k_max: int, dtype: str, shared_bytes: int) -> dict[str, int | str]:
    """How ``kernels/gmm_em.cu`` is compiled for a problem, given a multiprocessor's shared memory in bytes."""
    max_k = 16 if k_max <= 16 else 32
    real = {"float32": "float", "float64": "double"}[dtype]
    block_bytes = points_bytes(n_samples, n_dims, dtype) + static_bytes(n_dims, max_k, dtype)
    resident = int(block_bytes <= shared_bytes // RESIDENT_BLOCKS)
    return {"DIMS": n_dims, "REAL": real, "MAX_K": max_k, "RESIDENT": resident}


def points_bytes(n_samples: int, n_dims: int, dtype: str) -> int:
    """Shared memory that the samples of a problem take."""
    return n_samples * n_dims * np.dtype(dtype).itemsize


def static_bytes(n_dims: int, max_k: int, dtype: str) -> int:
    """Shared memory of ``fit_mixtures`` beside the samples (``struct Shared``), to within its alignment."""
    size, triangle = np.dtype(dtype).itemsize, n_dims * (n_dims + 1) // 2
    component = -(-size * (n_dims + triangle + 1) // 16) * 16
    per_component = component + 8 * (1 + triangle) + 8 * (1 + n_dims + triangle)
    return max_k * per_component + 8 * MAX_THREADS // 32 + TILE * size


def _fit_block(scores: Any, keys: NDArray, settings: MixtureSettings, given: Mapping[int, NDArray]) -> StandardisedFits:
    """Fits of one block of filters whose scores (F, N, d) lie on the device."""
    cupy = gpu.require()
    n_filters, n_samples, n_dims = scores.shape
    counts, k_max = settings.component_counts, settings.k_max
    n_k, real = len(counts), np.dtype(settings.dtype)
    n_numbers = 1 + n_dims + n_dims * (n_dims + 1) // 2
    compiled = macros(n_samples, n_dims, k_max, settings.dtype, gpu.shared_bytes_per_multiprocessor())
    compiled["SCORE"] = "float" if scores.dtype == np.float32 else "double"
    threads = (n_threads(n_samples),)

    points = cupy.empty((n_filters, n_dims, n_samples), real)
    centre, scale = cupy.empty((n_filters, n_dims)), cupy.empty(n_filters)
    n_distinct = cupy.empty(n_filters, np.int32)
    standardise = kernel("gmm_em", "standardise", **compiled)
    eps = np.float64(np.finfo(str(scores.dtype)).eps)
    arguments = scores, np.int32(n_samples), np.int32(k_max), eps, points, centre, scale, n_distinct
    standardise((n_filters,), threads, arguments)

    given_row = np.full(n_k, -1, np.int32)
    given_row[[k - settings.k_min for k in given]] = np.arange(len(given))
    labels_given = np.stack(list(given.values())) if given else np.zeros(1, np.int8)
    lower_bound = cupy.empty((n_filters, n_k, settings.n_init))
    n_iter = cupy.empty(lower_bound.shape, np.int32)
    converged = cupy.empty(lower_bound.shape, np.bool_)
    mixtures = cupy.empty((*lower_bound.shape, k_max, n_numbers))
    fit = kernel("gmm_em", "fit_mixtures", **compiled)
    shared_mem = points_bytes(n_samples, n_dims, settings.dtype) if compiled["RESIDENT"] else 0
    fit.max_dynamic_shared_size_bytes = shared_mem
    fit(
        (n_filters * n_k * settings.n_init,),
        threads,
        (
            points, n_distinct, cupy.asarray(keys), cupy.asarray(given_row), cupy.asarray(labels_given),
            np.int32(n_filters), np.int32(n_samples), np.int32(settings.k_min), np.int32(n_k),
            np.int32(settings.n_init), np.uint64(settings.seed), np.float64(settings.tol),
            np.int32(settings.max_iter), np.float64(settings.reg_covar),
            lower_bound, n_iter, converged, mixtures,
        ),
        shared_mem=shared_mem,
    )  # fmt: skip

    best_start = cupy.empty((n_filters, n_k), np.int32)
    labels = cupy.empty((n_filters, n_k, n_samples), np.int8)
    predict = kernel("gmm_em", "predict", **compiled)
    sizes = np.int32(n_samples), np.int32(settings.k_min), np.int32(settings.n_init)
    predict((n_filters, n_k), threads, (points, mixtures, lower_bound, *sizes, best_start, labels))

    index = cupy.empty((n_filters, n_k))
    n_components = cupy.empty(n_filters, np.int32)
    for_index = {"DIMS": n_dims, "REAL": compiled["REAL"]}
    score = kernel("calinski_harabasz", "calinski_harabasz", **for_index)
    precision = np.float64(settings.precision(str(scores.dtype)))
    score((n_filters, n_k), threads, (points, labels, np.int32(k_max), np.int32(n_samples), precision, index))
    choose = kernel("calinski_harabasz", "choose_n_components", **for_index)
    grid = (math.ceil(n_filters / CHOOSE_THREADS),)
    n = np.int32(settings.k_min), np.int32(n_k), np.int32(n_filters)
    choose(grid, (CHOOSE_THREADS,), (index, *n, n_components))

    every, all_k = cupy.arange(n_filters), cupy.arange(n_k)
    chosen = cupy.maximum(n_components - settings.k_min, 0)
    kept = (every[:, None], all_k[None, :], best_start)
    answers = (
        index, lower_bound[kept], n_iter[kept], converged[kept], n_components, labels[every, chosen],
        mixtures[every, chosen, best_start[every, chosen]], centre, scale, n_distinct,
    )  # fmt: skip
    return StandardisedFits(*(cupy.asnumpy(answer) for answer in answers))


def has_cuml() -> bool:
    """Whether cuML is installed."""
    return importlib.util.find_spec("cuml") is not None


@gpu.engine_errors()
def cuml_labels(scores: Any, keys: NDArray[np.uint64], settings: MixtureSettings) -> dict[int, NDArray[np.int8]]:
    """Starts by cuML's k-means, for filters of very many samples; to be given as ``initial_labels``.

    One block runs k-means++ and Lloyd's iteration for one problem, which is what thousands of small problems want. A
    single filter of a hundred thousand samples and more leaves the device idle that way; cuML spreads one problem over
    all of it. Its random numbers are its own, so that these starts are not those of the other engines: they are taken
    on request only.

    Parameters
    ----------
    scores : (F, N, d) float32 or float64
        In host or device memory.
    keys : (F,) uint64
        With the seed and K, what a start is drawn by: it does not depend on the other filters.
    settings : MixtureSettings
        Its ``k_min``, ``k_max``, ``n_init`` and ``seed``.

    Returns
    -------
    {K: (F, N) int8}
    """
    cupy = gpu.require()
    from cuml import KMeans

    starts: dict[int, list[NDArray]] = {k: [] for k in settings.component_counts}
    for filter_scores, key in zip(scores, keys, strict=True):
        on_device = cupy.asarray(filter_scores)
        for k, labels in starts.items():
            seed = int(np.random.SeedSequence([settings.seed, int(key), k]).generate_state(1)[0] >> np.uint32(1))
            model = KMeans(n_clusters=k, n_init=settings.n_init, random_state=seed, output_type="cupy")
            labels.append(cupy.asnumpy(model.fit_predict(on_device)).astype(np.int8))
    return {k: np.stack(labels) for k, labels in starts.items()}


def _check_shape(scores: Any) -> None:
    shape, dtype = tuple(scores.shape), str(scores.dtype).removeprefix("torch.")
    if len(shape) != 3 or 0 in shape[1:] or shape[2] > MAX_DIMS or shape[1] * shape[2] >= 2**31:
        raise ValueError(f"scores have shape {shape}: expected (F, N, d), d from 1 to {MAX_DIMS}, N x d below 2^31")
    if dtype not in ("float32", "float64"):
        raise ValueError(f"scores are {dtype}: expected float32 or float64")


def _check_finite(scores: Any, first_filter: int) -> None:
    """Raise CaptureError where scores on the device are not finite; one sum tells whether to look closer."""
    if math.isfinite(float(scores.sum(dtype=np.float64))):
        return
    bad = np.argwhere(~np.isfinite(gpu.require().asnumpy(scores)))
    if len(bad):
        raise CaptureError(f"scores of filter {first_filter + bad[0][0]}, sample {bad[0][1]} hold NaN or infinity")


def _empty(n_samples: int, n_dims: int, settings: MixtureSettings) -> SweepResult:
    n_k, k_max = len(settings.component_counts), settings.k_max
    return SweepResult(
        np.empty(0, np.int8), np.empty((0, n_k)), np.empty((0, n_k)), np.empty((0, n_k), np.int32),
        np.empty((0, n_k), np.bool_), np.empty(0, np.int32), np.empty((0, n_samples), np.int8),
        np.empty((0, k_max)), np.empty((0, k_max, n_dims)), np.empty((0, k_max, n_dims, n_dims)),
    )  # fmt: skip
