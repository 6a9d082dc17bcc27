"""What a mixture engine is asked and what it answers; the same for the reference, the CPU and the CUDA engine.

An engine is a function ``fit_mixtures(scores, keys, settings, initial_labels) -> SweepResult``. What it computes is
written down once, in :mod:`gmmcnn.mixture.reference`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

from gmmcnn.config import Gmm
from gmmcnn.constants import Status

STATUSES = (Status.OK, Status.DEAD, Status.TOO_FEW_DISTINCT, Status.UNDEFINED, Status.PERFECTLY_SEPARATED)
"""What the engines' status codes mean."""
OK, DEAD, TOO_FEW_DISTINCT, UNDEFINED, PERFECTLY_SEPARATED = range(len(STATUSES))


@dataclass(frozen=True)
class MixtureSettings:
    """Settings of a sweep, checked by whoever builds them (:class:`gmmcnn.mixture.sweep.GaussianMixtureSweep`)."""

    k_min: int = Gmm.k_min
    k_max: int = Gmm.k_max
    n_init: int = Gmm.n_init
    tol: float = Gmm.tol
    max_iter: int = Gmm.max_iter
    reg_covar: float = Gmm.reg_covar
    """Relative to the filter's mean score variance."""
    seed: int = 0
    """Below 2^64."""
    threads: int | None = None
    """CPU threads; None takes all cores."""
    dtype: str = "float32"
    """Arithmetic of the compiled engines: ``float32`` or ``float64``."""

    @property
    def component_counts(self) -> range:
        """Every K of the sweep, ascending."""
        return range(self.k_min, self.k_max + 1)

    def precision(self, scores_dtype: DTypeLike) -> float:
        """Distance of 1 from the next number, in the coarser of the scores' dtype and the arithmetic's."""
        return float(max(np.finfo(scores_dtype).eps, np.finfo(self.dtype).eps))


@dataclass(frozen=True)
class SweepResult:
    """Fits of F filters for every K of a sweep (n_k of them), and the mixture of the chosen K.

    Where a K was not fitted (more components than distinct points) ``lower_bound`` and ``calinski_harabasz`` are NaN
    and ``n_iter`` is 0.
    """

    status: NDArray[np.int8]
    """(F,) index into :data:`STATUSES`."""
    calinski_harabasz: NDArray[np.float64]
    """(F, n_k), NaN where undefined, infinite where clusters are perfectly separated."""
    lower_bound: NDArray[np.float64]
    """(F, n_k) mean log-likelihood of a sample, natural logarithm, in the units of the scores."""
    n_iter: NDArray[np.int32]
    """(F, n_k) EM iterations of the start that was kept."""
    converged: NDArray[np.bool_]
    """(F, n_k)."""
    n_components: NDArray[np.int32]
    """(F,) chosen K, 0 where none."""
    labels: NDArray[np.int8]
    """(F, N) cluster of each sample for the chosen K, -1 where none."""
    weights: NDArray[np.float64]
    """(F, k_max), of the chosen K; NaN beyond it."""
    means: NDArray[np.float64]
    """(F, k_max, d), in the units of the scores."""
    covariances: NDArray[np.float64]
    """(F, k_max, d, d), in the units of the scores squared."""


@dataclass(frozen=True)
class StandardisedFits:
    """What a compiled engine found on standardised scores: ``points = (scores - centre) / scale``."""

    calinski_harabasz: NDArray[np.float64]
    """(F, n_k), NaN where undefined."""
    lower_bound: NDArray[np.float64]
    """(F, n_k), NaN where not fitted."""
    n_iter: NDArray[np.int32]
    """(F, n_k)."""
    converged: NDArray[np.bool_]
    """(F, n_k)."""
    n_components: NDArray[np.int32]
    """(F,) chosen K, 0 where none."""
    labels: NDArray[np.int8]
    """(F, N) for the chosen K."""
    mixtures: NDArray[np.float64]
    """(F, k_max, 1 + d + d (d + 1) / 2) of the chosen K: weight, mean, and lower Cholesky factor by rows."""
    centre: NDArray[np.float64]
    """(F, d)."""
    scale: NDArray[np.float64]
    """(F,)."""
    n_distinct: NDArray[np.integer]
    """(F,) distinct points, counted up to some number of no less than k_max; 0 where the scores do not vary."""


def in_units_of_scores(settings: MixtureSettings, fits: StandardisedFits) -> SweepResult:
    """Statuses, and the mixtures of the chosen K in the units of the scores."""
    n_dims = fits.centre.shape[1]
    scale = np.where(fits.n_distinct > 0, fits.scale, 1.0)[:, None, None]
    status = np.full(len(fits.scale), OK, np.int8)
    status[(fits.n_components > 0) & np.isposinf(fits.calinski_harabasz).any(axis=1)] = PERFECTLY_SEPARATED
    status[fits.n_components == 0] = UNDEFINED
    status[fits.n_distinct < settings.k_min] = TOO_FEW_DISTINCT
    status[fits.n_distinct == 0] = DEAD
    exists = np.arange(settings.k_max) < fits.n_components[:, None]  # (F, k_max)
    mixtures = np.where(exists[..., None], fits.mixtures, np.nan)
    factors = np.zeros((*exists.shape, n_dims, n_dims))
    factors[..., *np.tril_indices(n_dims)] = mixtures[..., 1 + n_dims :]
    with np.errstate(over="ignore", under="ignore"):  # squares that float64 does not hold
        covariances = factors @ factors.swapaxes(-1, -2) * scale[..., None] ** 2
    return SweepResult(
        status=status,
        calinski_harabasz=fits.calinski_harabasz,
        lower_bound=fits.lower_bound - n_dims * np.log(scale[:, 0]),
        n_iter=fits.n_iter,
        converged=fits.converged,
        n_components=fits.n_components,
        labels=np.where(fits.n_components[:, None] > 0, fits.labels, np.int8(-1)),
        weights=mixtures[..., 0],
        means=mixtures[..., 1 : 1 + n_dims] * scale + fits.centre[:, None],
        covariances=covariances,
    )
