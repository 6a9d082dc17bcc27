"""Principal components of the feature maps of many filters, each filter on its own.

>>> import numpy as np
>>> from gmmcnn.principal_components import pca
>>> maps = np.random.default_rng(0).normal(size=(4, 100, 49))   # 4 filters, 100 samples, 7 x 7 pixels
>>> pca(maps).scores.shape
(4, 100, 2)
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from gmmcnn import gpu, pca_cpu
from gmmcnn.config import ENGINES
from gmmcnn.errors import CaptureError, ConfigurationError
from gmmcnn.threads import for_blocks

EXACT_SIZE = 4
"""A side shorter than so many blocks of the Krylov iteration is decomposed in full."""


@dataclass(frozen=True)
class PCAResult:
    """Scores of F filters on their own first d principal components."""

    scores: NDArray
    """(F, N, d), dtype of the maps. The sign is that of scikit-learn: the entry of each component that is largest in
    size is positive. Columns beyond min(N, P) are zero, as are all of a constant filter."""
    explained_variance: NDArray[np.float64]
    """(F, d) variance of each score, with divisor N - 1."""
    residual: NDArray[np.float64]
    """(F,) largest of ‖C v − λ v‖ / λ_1 over the d eigenpairs (λ, v) of the covariance C."""


def pca(
    maps: Any, n_components: int = 2, *, engine: str = "auto", threads: int | None = None
) -> PCAResult:  # fmt: skip
    """Project every filter's maps on their first principal components.

    Parameters
    ----------
    maps : (F, N, P) float32 or float64
        Feature maps of F filters: N samples of P pixels. An array or a CPU tensor.
    n_components : int
        d.
    engine : {"auto", "cpu", "cuda", "reference"}
        ``reference`` decomposes every filter in full, in float64.
    threads : int or None
        CPU threads; None takes all cores.

    Returns
    -------
    PCAResult

    Raises
    ------
    CaptureError
        A map holds NaN or infinity; the message names filter and sample.
    """
    if engine not in ENGINES:
        raise ConfigurationError(f"engine={engine!r}: expected one of {', '.join(ENGINES)}")
    if n_components < 1:
        raise ConfigurationError(f"n_components={n_components}: expected a whole number >= 1")
    if gpu.resolved(engine) == "cuda":
        from gmmcnn.pca_cuda import pca_on_device  # it names this module's results

        return pca_on_device(maps, n_components)
    array = _checked_maps(maps)
    n_filters, n_samples, _ = array.shape
    result = PCAResult(
        np.zeros((n_filters, n_samples, n_components), dtype=array.dtype),
        np.zeros((n_filters, n_components)),
        np.zeros(n_filters),
    )
    decompose = _decompose_exactly if engine == "reference" else _decompose
    # One BLAS thread: the threads are ours, and no result depends on how BLAS would split its work.
    with _blas_libraries().limit(limits=1, user_api="blas"):
        for_blocks(lambda first, last: decompose(array, slice(first, last), result), n_filters, threads)
    return result


@cache
def _blas_libraries() -> ThreadpoolController:
    """Those of NumPy and SciPy, loaded with this module; to find them takes milliseconds."""
    return ThreadpoolController()


def _checked_maps(maps: Any) -> NDArray:
    array = np.asarray(maps)
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float32)
    if array.ndim != 3 or 0 in array.shape[1:]:
        raise ValueError(f"maps have shape {array.shape}: expected (F, N, P), filters x samples x pixels")
    return np.ascontiguousarray(array)


def _decompose(maps: NDArray, block: slice, result: PCAResult) -> None:
    """Krylov iteration for maps of many samples and pixels; full decomposition for others and where it fails."""
    n_samples, n_pixels = maps.shape[1:]
    if min(n_samples, n_pixels) < EXACT_SIZE * pca_cpu.block_size(result.scores.shape[2]):
        _decompose_exactly(maps, block, result)
        return
    kind, converged = pca_cpu.krylov_pca(
        maps[block],
        result.scores.shape[2],
        result.scores[block],
        result.explained_variance[block],
        result.residual[block],
    )
    for f in np.flatnonzero((kind == pca_cpu.NOT_FINITE) | ~converged) + block.start:
        _decompose_exactly(maps, slice(f, f + 1), result)


def _decompose_exactly(maps: NDArray, block: slice, result: PCAResult) -> None:
    for f in range(block.start, block.stop):
        _require_finite(maps[f], f)
        result.scores[f], result.explained_variance[f], result.residual[f] = exact_pca(maps[f], result.scores.shape[2])


def _require_finite(maps: NDArray, f: int) -> None:
    if not np.isfinite(maps.sum(dtype=np.float64)):
        bad = np.flatnonzero(~np.isfinite(maps).all(axis=1))
        raise CaptureError(f"maps of filter {f}, sample {bad[0]} hold NaN or infinity: expected finite activations")


def exact_pca(maps: NDArray, n_components: int) -> tuple[NDArray, NDArray, float]:
    """Scores (N, d), variances (d,) and residual of one filter's maps (N, P), in float64.

    By the eigenvectors of the smaller of XᵀX and XXᵀ, X the centred maps.
    """
    n_samples, n_pixels = maps.shape
    kept = min(n_components, n_samples, n_pixels)
    scores, variance = np.zeros((n_samples, n_components)), np.zeros(n_components)
    if (maps == maps[0]).all():
        return scores, variance, 0.0
    centred = maps.astype(np.float64)
    centred -= centred.mean(axis=0)
    wide = n_samples < n_pixels
    gram = centred @ centred.T if wide else centred.T @ centred
    values, vectors = scipy.linalg.eigh(gram, subset_by_index=(len(gram) - kept, len(gram) - 1))
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    if wide:
        components = (centred.T @ vectors).T  # (d, P), of length √λ
        scores[:, :kept] = vectors * np.sqrt(values) * component_signs(components)
    else:
        components = vectors.T
        scores[:, :kept] = centred @ vectors * component_signs(components)
    variance[:kept] = values / (n_samples - 1)
    residual = np.linalg.norm(gram @ vectors - vectors * values, axis=0).max() / values[0]
    return scores, variance, float(residual)


def component_signs(components: NDArray) -> NDArray:
    """Signs (d,) that make the entry of largest size in each component (d, P) positive: scikit-learn's ``svd_flip``."""
    largest = np.abs(components).argmax(axis=1)
    return np.where(components[np.arange(len(components)), largest] < 0, -1.0, 1.0)
