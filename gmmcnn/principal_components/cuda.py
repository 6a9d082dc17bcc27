"""Principal components on a CUDA device: all filters of a block at once by subspace iteration (``kernels/pca.cu``).

The maps are read where they lie, twice a round, times a power of two and less their mean in two parts, so that neither
their scale nor their offset harms; they are never copied or centred in place. The host sends launches and every
``CHECK_ROUNDS`` rounds asks whether all filters are done. A filter that has not converged after ``MAX_ROUNDS`` is
decomposed exactly, in float64 on the host. Results do not depend on the other filters of a block.

Where one filter's maps alone fill the device (``CUML_MIN_NUMBERS``) and have few pixels (``CUML_MAX_PIXELS``), cuML's
PCA, which serves one matrix a call, is the better tool and used if installed; ``solver`` overrides that.

What it was run on says :mod:`gmmcnn.mixture.cuda`; cuML's part was not yet run on a device.
"""

import importlib.util
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gmmcnn.constants import MAX_DIMS
from gmmcnn.errors import CaptureError, ConfigurationError
from gmmcnn.hardware import gpu
from gmmcnn.hardware.kernel_loader import kernel
from gmmcnn.hardware.threads import one_blas_thread
from gmmcnn.principal_components.reference import (  # fmt: skip
    PCAResult,
    checked_maps,
    component_signs,
    exact_pca,
    require_finite_scores,
)

TOLERANCE = {"float32": 5e-6, "float64": 1e-10}
"""Residual ‖C v − λ v‖ / λ_1 at which an eigenpair is taken; float32 rounding leaves about 1e-6."""

MAX_ROUNDS = 100
CHECK_ROUNDS = 4
CHUNK = 1024
"""Samples summed in the maps' own precision (``kernels/pca.cu``)."""

ROWS = 4
"""Samples that a warp projects at once (``kernels/pca.cu``)."""

EXTRA_COLUMNS = 6
"""Columns of the basis beyond the components wanted, at least."""

CUML_MIN_NUMBERS = 2**28
CUML_MAX_PIXELS = 4096
CUML_MIN_SPREAD = 1e-3
"""Range of a filter's maps over their size from which cuML, which rounds the mean, is trusted with float32."""
CUML_EXPONENTS = 20
"""Of the size of a filter's maps, with either sign, within which cuML gets them as they are."""
SOLVERS = ("auto", "kernels", "cuml")

SCALES = {"float32": 126, "float64": 1022}
"""Exponents of the powers of two that a dtype holds, with either sign."""
SMALLEST = {"float32": -100, "float64": -1022}
"""Exponent of a filter's largest number below which smaller ones are no normal numbers, which kernels take for 0."""


@gpu.engine_errors()
def pca_on_device(maps: Any, n_components: int = 2, *, solver: str = "auto") -> PCAResult:
    """Project every filter's maps on their first components, as :func:`gmmcnn.principal_components.pca.pca` does.

    Parameters
    ----------
    maps : (F, N, P)
        In host memory, or in device memory (CuPy, torch), where float32 and float64 are used without a copy. What else
        they may be on the host, says :mod:`gmmcnn.hardware.arrays`; other dtypes on the device become float64.
    n_components : int
        d, 1 … 8.
    solver : {"auto", "kernels", "cuml"}
        ``auto`` takes cuML for large problems of few pixels, where it is installed.

    Returns
    -------
    PCAResult
        In host memory.

    Raises
    ------
    CaptureError
        A map holds NaN or infinity, or scores exceed float64.
    EngineError
        No device answers, or one filter's maps do not fit into its memory.
    """
    cupy = gpu.require()
    if solver not in SOLVERS:
        raise ConfigurationError(f"solver={solver!r}: expected one of {', '.join(SOLVERS)}")
    if not 1 <= n_components <= MAX_DIMS:
        raise ConfigurationError(f"n_components={n_components}: engine=cuda serves 1 to {MAX_DIMS}; use engine=cpu")
    maps = gpu.without_gradients(maps)
    if not gpu.is_device_array(maps):
        maps = checked_maps(maps)
    if len(maps.shape) != 3 or 0 in tuple(maps.shape)[1:]:
        raise ValueError(f"maps have shape {tuple(maps.shape)}: expected (F, N, P), filters x samples x pixels")
    n_samples, n_pixels = tuple(maps.shape)[1:]
    with_cuml = solver == "cuml" or (solver == "auto" and prefers_cuml(n_samples, n_pixels))
    result = _pca_on_device(
        cupy, maps, n_components, "float32" if _is_float32(maps) else "float64", with_cuml=with_cuml
    )
    if not np.isfinite(result.scores).all() and _is_float32(maps):
        result = _pca_on_device(cupy, maps, n_components, "float64", with_cuml=with_cuml)
    require_finite_scores(result.scores)
    return result


def _is_float32(maps: Any) -> bool:
    return str(maps.dtype).removeprefix("torch.") in ("float32", "float16", "bfloat16")


def _pca_on_device(cupy: Any, maps: Any, n_components: int, real: str, *, with_cuml: bool) -> PCAResult:
    n_filters, n_samples, n_pixels = maps.shape
    if n_filters == 0:
        return PCAResult(np.empty((0, n_samples, n_components), real), np.empty((0, n_components)), np.empty(0))

    def fit(rows: slice, block: Any) -> tuple[NDArray, ...]:
        block = cupy.ascontiguousarray(block.astype(real, copy=False))
        exponents, is_far = _sizes(cupy, block, rows.start)
        decompose = _cuml_block if with_cuml and not is_far else _kernel_block
        scores, variance, residual = decompose(cupy, block, exponents, n_components)
        with np.errstate(over="ignore", under="ignore"):  # beyond float32 is for float64
            return np.ldexp(scores, exponents[:, None, None]), np.ldexp(variance, 2 * exponents[:, None]), residual

    with gpu.callers_stream(maps):
        n_bytes = bytes_per_filter(n_samples, n_pixels, n_components, np.dtype(real).itemsize)
        scores, variance, residual = gpu.concatenate(gpu.map_blocks(maps, n_bytes, fit, max_rows=65535))
    rank = min(n_samples, n_pixels)
    scores[:, :, rank:] = 0
    variance[:, rank:] = 0
    return PCAResult(scores, variance, residual)


def prefers_cuml(n_samples: int, n_pixels: int) -> bool:
    """Whether ``solver="auto"`` takes cuML: installed, one filter fills the device, and the covariance is small."""
    large = n_samples * n_pixels >= CUML_MIN_NUMBERS and 2 <= n_pixels <= min(CUML_MAX_PIXELS, n_samples)
    return large and importlib.util.find_spec("cuml") is not None


def n_columns(n_components: int) -> int:
    """Columns of the basis (``COLUMNS`` of ``kernels/pca.cu``)."""
    return max(8, math.ceil((n_components + EXTRA_COLUMNS) / 4) * 4)


def bytes_per_filter(n_samples: int, n_pixels: int, n_components: int, itemsize: int) -> int:
    """Device memory for one filter: its maps twice, as the next block is on its way, and what the iteration needs."""
    columns, chunks = n_columns(n_components), math.ceil(n_samples / CHUNK)
    numbers = 2 * n_samples * n_pixels + n_pixels * (1 + columns * (2 + chunks)) + n_samples * (columns + n_components)
    return numbers * itemsize + 1024


def _kernel_block(cupy: Any, maps: Any, exponents: NDArray[np.int32], n_components: int) -> tuple[NDArray, ...]:
    """Scores, variances and residuals of maps (F, N, P) times 2^-exponents (F,)."""
    n_filters, n_samples, n_pixels = maps.shape
    columns, n_chunks = n_columns(n_components), math.ceil(n_samples / CHUNK)
    macros = {"REAL": "float" if maps.dtype == np.float32 else "double", "COLUMNS": columns}
    column_means, project, backproject, rotate = (
        kernel("pca", name, **macros) for name in ("column_means", "project", "backproject", "rotate")
    )
    n, p, false, true = np.int32(n_samples), np.int32(n_pixels), np.bool_(0), np.bool_(1)
    threads = 256 if columns != 12 else 192  # a multiple of the columns and of a warp
    pixel_threads = min(threads, math.ceil(n_pixels / 32) * 32)
    pixel_blocks, sample_blocks = math.ceil(n_pixels / pixel_threads), math.ceil(n_samples / (ROWS * threads // 32))

    scale = cupy.asarray(np.ldexp(1.0, -exponents).astype(maps.dtype))
    means, rounding = cupy.empty((n_filters, n_pixels), maps.dtype), cupy.empty((n_filters, n_pixels), maps.dtype)
    done = cupy.zeros(n_filters, np.bool_)
    basis = cupy.empty((n_filters, n_pixels, columns), maps.dtype)
    image, projected = cupy.empty(basis.shape, maps.dtype), cupy.empty((n_filters, n_samples, columns), maps.dtype)
    partial = cupy.empty((n_filters, n_chunks, n_pixels, columns), maps.dtype)
    variance, residual = cupy.zeros((n_filters, n_components)), cupy.zeros(n_filters)
    scores = cupy.empty((n_filters, n_samples, n_components), maps.dtype)

    def advance(y: Any, is_first: np.bool_) -> None:
        grid = pixel_blocks, n_chunks, n_filters
        backproject(grid, (pixel_threads,), (maps, scale, means, rounding, y, done, n, p, is_first, partial))
        sizes = n, p, np.int32(n_chunks), np.int32(n_components), np.float64(TOLERANCE[maps.dtype.name]), is_first
        rotate((n_filters,), (threads,), (y, partial, *sizes, basis, image, done, variance, residual, scores))

    column_means((pixel_blocks, n_filters), (pixel_threads,), (maps, scale, n, p, means, rounding))
    start = np.random.default_rng(0).standard_normal((n_samples, columns)).astype(maps.dtype)
    advance(cupy.asarray(start), true)
    for round_ in range(1, MAX_ROUNDS + 1):
        project((sample_blocks, n_filters), (threads,), (maps, scale, means, rounding, basis, done, n, p, projected))
        advance(projected, false)
        if round_ % CHECK_ROUNDS == 0 and bool(done.all()):
            break
    answers = [cupy.asnumpy(answer) for answer in (scores, variance, residual)]
    for f in np.flatnonzero(~cupy.asnumpy(done) | (exponents < SMALLEST[maps.dtype.name])):
        scaled = np.ldexp(cupy.asnumpy(maps[f]).astype(np.float64), -exponents[f])
        with one_blas_thread():
            answers[0][f], answers[1][f], answers[2][f] = exact_pca(scaled, n_components)
    return tuple(answers)


def _cuml_block(cupy: Any, maps: Any, exponents: NDArray[np.int32], n_components: int) -> tuple[NDArray, ...]:
    """As :func:`_kernel_block`; maps of ordinary size are not copied."""
    from cuml import PCA

    n_filters, n_samples, n_pixels = maps.shape
    scores = np.zeros((n_filters, n_samples, n_components), maps.dtype)
    variance = np.zeros((n_filters, n_components))
    kept = min(n_components, n_pixels)
    for f in range(n_filters):
        left = int(exponents[f]) if abs(exponents[f]) <= CUML_EXPONENTS else 0  # what is not taken from the maps
        scaled = maps[f] if left == exponents[f] else maps[f] * maps.dtype.type(np.ldexp(1.0, -exponents[f]))
        model = PCA(n_components=kept, output_type="cupy")
        projected = cupy.asnumpy(model.fit_transform(scaled))
        scores[f, :, :kept] = np.ldexp(projected * component_signs(cupy.asnumpy(model.components_)), -left)
        variance[f, :kept] = np.ldexp(cupy.asnumpy(model.explained_variance_).astype(np.float64), -2 * left)
    return scores, variance, np.zeros(n_filters)


def _sizes(cupy: Any, maps: Any, first_filter: int) -> tuple[NDArray[np.int32], bool]:
    """Exponents (F,) of the largest number of each filter's maps; whether some are far from 0 for how they vary.

    CaptureError where maps are not finite.
    """
    high, low = (cupy.asnumpy(of(axis=(1, 2))).astype(np.float64) for of in (maps.max, maps.min))
    largest = np.maximum(high, -low)
    for f in np.flatnonzero(~np.isfinite(largest)):
        bad = np.flatnonzero(~np.isfinite(cupy.asnumpy(maps[f])).all(axis=1))
        raise CaptureError(
            f"maps of filter {first_filter + f}, sample {bad[0]} hold NaN or infinity: expected finite activations"
        )
    limit = SCALES[maps.dtype.name]
    exponents = np.clip(np.frexp(largest)[1], -limit, limit).astype(np.int32)
    with np.errstate(over="ignore"):
        is_far = (high - low < CUML_MIN_SPREAD * largest) & (high > low)
    return exponents, bool(is_far.any())
