"""Principal components of the feature maps of many filters, each filter on its own.

>>> import numpy as np
>>> from gmmcnn.principal_components.pca import pca
>>> maps = np.random.default_rng(0).normal(size=(4, 100, 49))   # 4 filters, 100 samples, 7 x 7 pixels
>>> pca(maps).scores.shape
(4, 100, 2)
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gmmcnn.config import ENGINES
from gmmcnn.errors import ConfigurationError
from gmmcnn.hardware import gpu
from gmmcnn.hardware.threads import for_blocks, one_blas_thread
from gmmcnn.principal_components.cuda import pca_on_device
from gmmcnn.principal_components.gram import gram_pca
from gmmcnn.principal_components.krylov import krylov_pca
from gmmcnn.principal_components.orthogonal import NOT_FINITE, block_size
from gmmcnn.principal_components.reference import (  # fmt: skip
    PCAResult,
    checked_maps,
    exact_pca,
    require_finite,
    require_finite_scores,
)

EXACT_SIZE = 4
"""A side shorter than so many blocks of the Krylov iteration is decomposed in full."""

GRAM_PIXELS = 112
"""Pixels up to which a Gram matrix costs less than passes over the maps."""


def pca(
    maps: Any, n_components: int = 2, *, engine: str = "auto", threads: int | None = None
) -> PCAResult:  # fmt: skip
    """Project every filter's maps on their first principal components.

    Parameters
    ----------
    maps : (F, N, P)
        Feature maps of F filters: N samples of P pixels, of any scale and offset. An array or a tensor of real numbers;
        what is not float32 or float64 becomes what holds it (:mod:`gmmcnn.hardware.arrays`).
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
        A map holds NaN or infinity, or scores exceed float64; the message names the filter.
    DataError
        The maps are no real numbers, or their conversion would lose what counts.
    """
    if engine not in ENGINES:
        raise ConfigurationError(f"engine={engine!r}: expected one of {', '.join(ENGINES)}")
    if n_components < 1:
        raise ConfigurationError(f"n_components={n_components}: expected a whole number >= 1")
    if gpu.resolved(engine) == "cuda":
        return pca_on_device(maps, n_components)
    result = _pca_on_host(checked_maps(maps), n_components, engine, threads)
    if result.scores.dtype == np.float32 and not np.isfinite(result.scores).all():
        result = _pca_on_host(checked_maps(maps).astype(np.float64), n_components, engine, threads)
    require_finite_scores(result.scores)
    return result


def _pca_on_host(maps: NDArray, n_components: int, engine: str, threads: int | None) -> PCAResult:
    n_filters, n_samples, _ = maps.shape
    result = PCAResult(
        np.zeros((n_filters, n_samples, n_components), dtype=maps.dtype),
        np.zeros((n_filters, n_components)),
        np.zeros(n_filters),
    )
    decompose = _decompose_exactly if engine == "reference" else _decompose
    with one_blas_thread():
        for_blocks(lambda first, last: decompose(maps, slice(first, last), result), n_filters, threads)
    return result


def _decompose(maps: NDArray, block: slice, result: PCAResult) -> None:
    """An iteration for maps of many samples and pixels; full decomposition for others and where it fails."""
    n_samples, n_pixels = maps.shape[1:]
    n_components = result.scores.shape[2]
    if min(n_samples, n_pixels) < EXACT_SIZE * block_size(n_components):
        _decompose_exactly(maps, block, result)
        return
    left = [block]
    if n_pixels <= GRAM_PIXELS:
        left = [slice(f, f + 1) for f in _iterate(gram_pca, maps, block, result)]
    for some in left:
        for f in _iterate(krylov_pca, maps, some, result):
            _decompose_exactly(maps, slice(f, f + 1), result)


def _iterate(iteration: Callable, maps: NDArray, block: slice, result: PCAResult) -> list[int]:
    """Decompose the maps of some filters; those where it failed, or that are not finite."""
    scores, variance, residual = result.scores[block], result.explained_variance[block], result.residual[block]
    kind, converged = iteration(maps[block], scores.shape[2], scores, variance, residual)
    return (np.flatnonzero((kind == NOT_FINITE) | ~converged) + block.start).tolist()


def _decompose_exactly(maps: NDArray, block: slice, result: PCAResult) -> None:
    for f in range(block.start, block.stop):
        require_finite(maps[f], f)
        with np.errstate(over="ignore", under="ignore"):  # beyond float32 is for float64
            result.scores[f], result.explained_variance[f], result.residual[f] = exact_pca(
                maps[f], result.scores.shape[2]
            )
