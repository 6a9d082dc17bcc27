"""Principal components of the feature maps of many filters, each filter on its own.

>>> import numpy as np
>>> from gmmcnn.pca import pca
>>> maps = np.random.default_rng(0).normal(size=(4, 100, 49))   # 4 filters, 100 samples, 7 x 7 pixels
>>> pca(maps).scores.shape
(4, 100, 2)
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gmmcnn.config import ENGINES
from gmmcnn.errors import CaptureError, ConfigurationError


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
        ``reference`` is the full singular value decomposition in float64.
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
    array = _checked_maps(maps)
    if n_components < 1:
        raise ConfigurationError(f"n_components={n_components}: expected a whole number >= 1")
    results = [_reference_pca(filter_maps, n_components) for filter_maps in array]
    n_filters, n_samples, _ = array.shape
    scores = np.zeros((n_filters, n_samples, n_components), dtype=array.dtype)
    explained_variance = np.zeros((n_filters, n_components))
    for f, (filter_scores, variance) in enumerate(results):
        scores[f], explained_variance[f] = filter_scores, variance
    return PCAResult(scores, explained_variance, np.zeros(n_filters))


def _checked_maps(maps: Any) -> NDArray:
    array = np.asarray(maps)
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float32)
    if array.ndim != 3 or 0 in array.shape[1:]:
        raise ValueError(f"maps have shape {array.shape}: expected (F, N, P), filters x samples x pixels")
    for f, filter_maps in enumerate(array):
        if not np.isfinite(filter_maps.sum()):
            bad = np.flatnonzero(~np.isfinite(filter_maps).all(axis=1))
            if len(bad):
                raise CaptureError(
                    f"maps of filter {f}, sample {bad[0]} hold NaN or infinity: expected finite activations"
                )
    return array


def _reference_pca(maps: NDArray, n_components: int) -> tuple[NDArray, NDArray]:
    """Scores (N, d) and variances (d,) of one filter's maps (N, P) by singular value decomposition in float64."""
    n_samples, n_pixels = maps.shape
    scores = np.zeros((n_samples, n_components))
    variance = np.zeros(n_components)
    if (maps == maps[0]).all():
        return scores, variance
    centred = maps.astype(np.float64)
    centred -= centred.mean(axis=0)
    left, singular, right = np.linalg.svd(centred, full_matrices=False)
    kept = min(n_components, n_samples, n_pixels)
    signs = component_signs(right[:kept])
    scores[:, :kept] = left[:, :kept] * singular[:kept] * signs
    variance[:kept] = singular[:kept] ** 2 / (n_samples - 1)
    return scores, variance


def component_signs(components: NDArray) -> NDArray:
    """Signs (d,) that make the entry of largest size in each component (d, P) positive: scikit-learn's ``svd_flip``."""
    largest = np.abs(components).argmax(axis=1)
    return np.where(components[np.arange(len(components)), largest] < 0, -1.0, 1.0)
