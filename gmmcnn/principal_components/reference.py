"""What a principal component analysis is: its result, its sign, and the exact decomposition in float64."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from gmmcnn.errors import CaptureError
from gmmcnn.hardware.arrays import as_floats


@dataclass(frozen=True)
class PCAResult:
    """Scores of F filters on their own first d principal components."""

    scores: NDArray
    """(F, N, d), dtype of the maps; float64 where float32 does not hold them. The sign is that of scikit-learn: the
    entry of each component that is largest in size is positive. Columns beyond min(N, P) are zero, as are all of a
    constant filter."""
    explained_variance: NDArray[np.float64]
    """(F, d) variance of each score, with divisor N - 1."""
    residual: NDArray[np.float64]
    """(F,) largest of ‖C v − λ v‖ / λ_1 over the d eigenpairs (λ, v) of the covariance C."""


def checked_maps(maps: Any) -> NDArray:
    """Maps as a contiguous (F, N, P) array of float32 or float64 (:mod:`gmmcnn.hardware.arrays` says of which).

    Raises
    ------
    ValueError
        They have another shape.
    DataError
        They are no real numbers, or a conversion would lose what counts.
    """
    array = as_floats(maps, "maps")
    if array.ndim != 3 or 0 in array.shape[1:]:
        raise ValueError(f"maps have shape {array.shape}: expected (F, N, P), filters x samples x pixels")
    return array


def require_finite(maps: NDArray, f: int) -> None:
    """Raise CaptureError, which names filter ``f`` and the sample, if its maps (N, P) hold NaN or infinity."""
    bad = np.flatnonzero(~np.isfinite(maps).all(axis=1))
    if len(bad):
        raise CaptureError(f"maps of filter {f}, sample {bad[0]} hold NaN or infinity: expected finite activations")


def require_finite_scores(scores: NDArray) -> None:
    """Raise CaptureError, which names the filter, if scores (F, N, d) are infinite: beyond float64."""
    bad = np.flatnonzero(~np.isfinite(scores).all(axis=(1, 2)))
    if len(bad):
        raise CaptureError(
            f"maps of filter {bad[0]} are so large that their scores exceed float64: divide them by a power of two"
        )


def exact_pca(maps: NDArray, n_components: int) -> tuple[NDArray, NDArray, float]:
    """Scores (N, d), variances (d,) and residual of one filter's maps (N, P), in float64.

    By the eigenvectors of the smaller of XᵀX and XXᵀ, X the centred maps, divided by a power of two so that no square
    leaves the range of float64. What leaves it all the same, on the way back, is infinite or 0.
    """
    n_samples, n_pixels = maps.shape
    kept = min(n_components, n_samples, n_pixels)
    scores, variance = np.zeros((n_samples, n_components)), np.zeros(n_components)
    if (maps == maps[0]).all():
        return scores, variance, 0.0
    centred, exponent = centred_and_scaled(maps)
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
    with np.errstate(over="ignore", under="ignore"):
        return np.ldexp(scores, exponent), np.ldexp(variance, 2 * exponent), float(residual)


def centred_and_scaled(maps: NDArray) -> tuple[NDArray[np.float64], int]:
    """Maps (N, P) that are not constant, less their mean, over 2^e such that the largest is near 1; and e.

    They are scaled twice: before the mean is taken, that no sum overflows, and after.
    """
    centred, exponent = _scaled(maps.astype(np.float64))
    centred -= centred.mean(axis=0)
    centred, further = _scaled(centred)
    return centred, exponent + further


def _scaled(x: NDArray[np.float64]) -> tuple[NDArray[np.float64], int]:
    exponent = int(np.frexp(np.abs(x).max())[1])
    return np.ldexp(x, -exponent), exponent


def component_signs(components: NDArray) -> NDArray:
    """Signs (d,) that make the entry of largest size in each component (d, P) positive: scikit-learn's ``svd_flip``."""
    largest = np.abs(components).argmax(axis=1)
    return np.where(components[np.arange(len(components)), largest] < 0, -1.0, 1.0)
