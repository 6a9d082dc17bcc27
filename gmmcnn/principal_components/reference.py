"""What a principal component analysis is: its result, its sign, and the exact decomposition in float64."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from gmmcnn.errors import CaptureError


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


def checked_maps(maps: Any) -> NDArray:
    """Maps as a contiguous (F, N, P) array of float32 or float64. ValueError if they have another shape."""
    array = np.asarray(maps)
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float32)
    if array.ndim != 3 or 0 in array.shape[1:]:
        raise ValueError(f"maps have shape {array.shape}: expected (F, N, P), filters x samples x pixels")
    return np.ascontiguousarray(array)


def require_finite(maps: NDArray, f: int) -> None:
    """Raise CaptureError, which names filter ``f`` and the sample, if its maps (N, P) hold NaN or infinity."""
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


@cache
def _blas_libraries() -> ThreadpoolController:
    """Those of NumPy and SciPy, loaded with this module; to find them takes milliseconds."""
    return ThreadpoolController()


def one_blas_thread() -> Any:
    """Context of one BLAS thread: the threads are ours, and no result depends on how BLAS splits its work."""
    return _blas_libraries().limit(limits=1, user_api="blas")
