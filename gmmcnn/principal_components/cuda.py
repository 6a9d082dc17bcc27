"""Principal components on a CUDA device: all filters of a block at once by subspace iteration (``kernels/pca.cu``).

The maps are read where they lie, twice a round, and never copied or centred in place. The host sends launches and every
``CHECK_ROUNDS`` rounds asks whether all filters are done. A filter that has not converged after ``MAX_ROUNDS`` is
decomposed exactly, in float64 on the host. Results do not depend on the other filters of a block.

Where one filter's maps alone fill the device (``CUML_MIN_NUMBERS``) and have few pixels (``CUML_MAX_PIXELS``), cuML's
PCA, which serves one matrix a call, is the better tool and used if installed; ``solver`` overrides that.

**Not yet run on a device**; see :mod:`gmmcnn.mixture.cuda`.
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
from gmmcnn.principal_components.reference import PCAResult, component_signs, exact_pca, one_blas_thread

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
SOLVERS = ("auto", "kernels", "cuml")


def pca_on_device(maps: Any, n_components: int = 2, *, solver: str = "auto") -> PCAResult:
    """Project every filter's maps on their first components, as :func:`gmmcnn.principal_components.pca.pca` does.

    Parameters
    ----------
    maps : (F, N, P)
        In host memory, or in device memory (CuPy, torch), where float32 and float64 are used without a copy; every
        other dtype becomes float32.
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
        A map holds NaN or infinity.
    EngineError
        No device answers, or one filter's maps do not fit into its memory.
    """
    cupy = gpu.require()
    if solver not in SOLVERS:
        raise ConfigurationError(f"solver={solver!r}: expected one of {', '.join(SOLVERS)}")
    if not 1 <= n_components <= MAX_DIMS:
        raise ConfigurationError(f"n_components={n_components}: engine=cuda serves 1 to {MAX_DIMS}; use engine=cpu")
    if not gpu.is_device_array(maps):
        maps = np.asarray(maps)
    if len(maps.shape) != 3 or 0 in tuple(maps.shape)[1:]:
        raise ValueError(f"maps have shape {tuple(maps.shape)}: expected (F, N, P), filters x samples x pixels")
    n_filters, n_samples, n_pixels = maps.shape
    real = "float64" if str(maps.dtype).endswith("float64") else "float32"
    if n_filters == 0:
        return PCAResult(np.empty((0, n_samples, n_components), real), np.empty((0, n_components)), np.empty(0))
    with_cuml = solver == "cuml" or (solver == "auto" and prefers_cuml(n_samples, n_pixels))

    def fit(rows: slice, block: Any) -> tuple[NDArray, ...]:
        block = cupy.ascontiguousarray(block.astype(real, copy=False))
        _check(cupy, block, rows.start)
        return _cuml_block(cupy, block, n_components) if with_cuml else _kernel_block(cupy, block, n_components)

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


def _kernel_block(cupy: Any, maps: Any, n_components: int) -> tuple[NDArray, ...]:
    n_filters, n_samples, n_pixels = maps.shape
    columns, n_chunks = n_columns(n_components), math.ceil(n_samples / CHUNK)
    macros = {"REAL": "float" if maps.dtype == np.float32 else "double", "COLUMNS": columns}
    column_means, project, backproject, rotate = (
        kernel("pca", name, **macros) for name in ("column_means", "project", "backproject", "rotate")
    )
    n, p, false, true = np.int32(n_samples), np.int32(n_pixels), np.bool_(False), np.bool_(True)
    threads = 256 if columns != 12 else 192  # a multiple of the columns and of a warp
    pixel_threads = min(threads, math.ceil(n_pixels / 32) * 32)
    pixel_blocks, sample_blocks = math.ceil(n_pixels / pixel_threads), math.ceil(n_samples / (ROWS * threads // 32))

    means, done = cupy.empty((n_filters, n_pixels), maps.dtype), cupy.zeros(n_filters, np.bool_)
    basis = cupy.empty((n_filters, n_pixels, columns), maps.dtype)
    image, projected = cupy.empty(basis.shape, maps.dtype), cupy.empty((n_filters, n_samples, columns), maps.dtype)
    partial = cupy.empty((n_filters, n_chunks, n_pixels, columns), maps.dtype)
    variance, residual = cupy.zeros((n_filters, n_components)), cupy.zeros(n_filters)
    scores = cupy.empty((n_filters, n_samples, n_components), maps.dtype)

    def advance(y: Any, is_first: np.bool_) -> None:
        grid = pixel_blocks, n_chunks, n_filters
        backproject(grid, (pixel_threads,), (maps, means, y, done, n, p, is_first, partial))
        sizes = n, p, np.int32(n_chunks), np.int32(n_components), np.float64(TOLERANCE[maps.dtype.name]), is_first
        rotate((n_filters,), (threads,), (y, partial, *sizes, basis, image, done, variance, residual, scores))

    column_means((pixel_blocks, n_filters), (pixel_threads,), (maps, n, p, means))
    start = np.random.default_rng(0).standard_normal((n_samples, columns)).astype(maps.dtype)
    advance(cupy.asarray(start), true)
    for round_ in range(1, MAX_ROUNDS + 1):
        project((sample_blocks, n_filters), (threads,), (maps, means, basis, done, n, p, projected))
        advance(projected, false)
        if round_ % CHECK_ROUNDS == 0 and bool(done.all()):
            break
    answers = [cupy.asnumpy(answer) for answer in (scores, variance, residual)]
    for f in np.flatnonzero(~cupy.asnumpy(done)):
        with one_blas_thread():
            answers[0][f], answers[1][f], answers[2][f] = exact_pca(cupy.asnumpy(maps[f]), n_components)
    return tuple(answers)


def _cuml_block(cupy: Any, maps: Any, n_components: int) -> tuple[NDArray, ...]:
    from cuml import PCA

    n_filters, n_samples, n_pixels = maps.shape
    scores = np.zeros((n_filters, n_samples, n_components), maps.dtype)
    variance = np.zeros((n_filters, n_components))
    kept = min(n_components, n_pixels)
    for f in range(n_filters):
        model = PCA(n_components=kept, output_type="cupy")
        projected = cupy.asnumpy(model.fit_transform(maps[f]))
        scores[f, :, :kept] = projected * component_signs(cupy.asnumpy(model.components_))
        variance[f, :kept] = cupy.asnumpy(model.explained_variance_)
    return scores, variance, np.zeros(n_filters)


def _check(cupy: Any, maps: Any, first_filter: int) -> None:
    """Raise CaptureError where maps are not finite; one sum a filter tells whether to look closer."""
    bad_filters = np.flatnonzero(~np.isfinite(cupy.asnumpy(maps.sum(axis=(1, 2)))))
    for f in bad_filters:
        bad = np.flatnonzero(~np.isfinite(cupy.asnumpy(maps[f])).all(axis=1))
        if len(bad):
            raise CaptureError(
                f"maps of filter {first_filter + f}, sample {bad[0]} hold NaN or infinity: expected finite activations"
            )
