"""Gaussian mixtures for every filter and every K, and the K that the Calinski-Harabasz index prefers.

>>> import numpy as np
>>> from gmmcnn.mixture.sweep import GaussianMixtureSweep
>>> rng = np.random.default_rng(0)
>>> groups = np.repeat([[-8, 0], [0, 0], [8, 0]], 20, axis=0)
>>> scores = groups + rng.normal(size=(3, 60, 2))   # 3 filters, 60 samples in 3 groups
>>> GaussianMixtureSweep(k_max=5, engine="reference").fit(scores).n_components_
array([3, 3, 3], dtype=int32)
"""

import warnings
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator

from gmmcnn.config import CUML, ENGINES, Engine, Gmm
from gmmcnn.constants import MAX_COMPONENTS, MAX_DIMS, MAX_STARTS
from gmmcnn.errors import CaptureError, ConfigurationError, ConvergenceWarning
from gmmcnn.hardware import gpu
from gmmcnn.hardware.arrays import as_floats
from gmmcnn.mixture import cpu, cuda, reference
from gmmcnn.mixture.problem import STATUSES, MixtureSettings, SweepResult

MixtureEngine = Callable[[Any, NDArray[np.uint64], MixtureSettings, Mapping[int, NDArray]], SweepResult]


class GaussianMixtureSweep(BaseEstimator):
    """Full-covariance Gaussian mixtures with K = k_min … k_max components for each of F filters.

    The algorithm is that of ``sklearn.mixture.GaussianMixture``, with a covariance regularisation relative to the
    scale of the data; :mod:`gmmcnn.mixture.reference` writes it down. Each filter is a problem of its own: its result
    depends on its scores, its key and the settings, not on the other filters, their order, or the number of threads.

    Parameters
    ----------
    k_min, k_max : int
        Numbers of components to try, 2 ≤ k_min ≤ k_max ≤ 32.
    n_init : int
        Starts for each K; the one with the largest likelihood is kept.
    tol : float
        EM stops when the mean log-likelihood of a sample changes by less.
    max_iter : int
        EM stops after so many iterations.
    reg_covar : float
        Added to the diagonal of every covariance, times the filter's mean score variance.
    random_state : int
        Seed, 0 … 2^64 - 1.
    engine : {"auto", "cpu", "cuda", "reference"}
        What computes: compiled CPU code, CUDA kernels, or plain float64 NumPy; ``auto`` is ``cuda`` where a device
        answers, else ``cpu``.
    threads : int or None
        CPU threads; None takes all cores.
    cuml : {"never", "auto"}
        ``auto``: on the CUDA engine, starts of filters of 16,384 samples and more are found by cuML's k-means where it
        is installed (:func:`gmmcnn.mixture.cuda.cuml_labels`).
    dtype : {"float32", "float64"}
        Arithmetic of the compiled engines; sums over samples are float64 in both. The reference always uses float64.

    Attributes
    ----------
    status_ : (F,) str
        ``ok``; ``perfectly_separated`` (the chosen clusters have no spread of their own: the index is infinite);
        ``dead`` (scores do not vary); ``too_few_distinct`` (fewer distinct points than k_min); ``undefined`` (fitted,
        but no K has a Calinski-Harabasz index).
    n_components_ : (F,) int32
        Chosen K, 0 where the status is neither ``ok`` nor ``perfectly_separated``.
    labels_ : (F, N) int8
        Cluster of every sample for the chosen K, -1 where there is none.
    calinski_harabasz_ : (F, n_k) float64
        Index for each K, infinite for perfectly separated clusters, NaN where undefined; column i is K = k_min + i.
    lower_bound_ : (F, n_k) float64
        Mean log-likelihood of a sample, in the units of the scores; NaN where K was not fitted.
    n_iter_, converged_ : (F, n_k) int32, bool
        EM iterations of the start that was kept, and whether it reached ``tol``.
    weights_, means_, covariances_ : (F, k_max), (F, k_max, d), (F, k_max, d, d) float64
        The mixture of the chosen K, in the units of the scores; NaN beyond it.
    """

    def __init__(  # noqa: PLR0917 - as estimators of scikit-learn are
        self,
        k_min: int = Gmm.k_min,
        k_max: int = Gmm.k_max,
        n_init: int = Gmm.n_init,
        tol: float = Gmm.tol,
        max_iter: int = Gmm.max_iter,
        reg_covar: float = Gmm.reg_covar,
        random_state: int = Gmm.random_state,
        engine: str = Engine.name,
        threads: int | None = None,
        dtype: str = "float32",
        cuml: str = Engine.cuml,
    ) -> None:
        self.k_min = k_min
        self.k_max = k_max
        self.n_init = n_init
        self.tol = tol
        self.max_iter = max_iter
        self.reg_covar = reg_covar
        self.random_state = random_state
        self.engine = engine
        self.threads = threads
        self.dtype = dtype
        self.cuml = cuml

    def fit(
        self,
        scores: ArrayLike,
        initial_labels: Mapping[int, ArrayLike] | None = None,
        *,
        keys: ArrayLike | None = None,
    ) -> Self:
        """Fit every K to every filter.

        Parameters
        ----------
        scores : (F, N, d)
            PCA scores, real numbers of any kind (:mod:`gmmcnn.hardware.arrays`); d ≤ 8 for the compiled engines. For
            ``engine="cuda"`` they may lie on the device (a CuPy array or a torch tensor), where they are used without a
            copy.
        initial_labels : {k: (F, N) int}, optional
            Hard labels 0 … k - 1 from which EM starts for those k; one start replaces ``n_init``.
        keys : (F,) uint64, optional
            Identity of each filter's random stream; 0 … F - 1 by default. Give each filter a key of its own to get
            the same result for it in whatever subset and order filters are fitted.

        Returns
        -------
        GaussianMixtureSweep
            Itself.

        Raises
        ------
        ConfigurationError
            A parameter is out of range.
        CaptureError
            A score is NaN or infinite; the message names filter and sample.
        ValueError
            An array has the wrong shape or values.
        EngineError
            The engine does not run on this machine.

        Warns
        -----
        ConvergenceWarning
            The chosen mixture of some filter stopped at ``max_iter``.
        """
        settings = self._settings()
        engine = mixture_engine(self.engine)
        array: Any = gpu.without_gradients(scores)
        if not (gpu.is_device_array(array) and self.engine in ("auto", "cuda")):  # the CUDA engine checks its own
            array = _checked_scores(array)
        n_filters, n_samples, _ = array.shape
        checked_keys = _checked_keys(keys, n_filters)
        if initial_labels is None and self._asks_cuml(n_samples):
            initial_labels = cuda.cuml_labels(array, checked_keys, settings)
        labels = _checked_labels(initial_labels or {}, settings, n_filters, n_samples)
        result = engine(array, checked_keys, settings, labels)
        self._take(result)
        return self

    def _asks_cuml(self, n_samples: int) -> bool:
        """Whether starts of this many samples are cuML's."""
        possible = self.cuml == "auto" and n_samples >= cuda.CUML_MIN_SAMPLES
        return possible and gpu.resolved(self.engine) == "cuda" and cuda.has_cuml()

    def _settings(self) -> MixtureSettings:
        self._require("k_min", Integral, 2, MAX_COMPONENTS)
        self._require("k_max", Integral, self.k_min, MAX_COMPONENTS)
        self._require("n_init", Integral, 1, MAX_STARTS - 1)
        self._require("max_iter", Integral, 1, 2**31 - 1)
        self._require("random_state", Integral, 0, 2**64 - 1)
        self._require("tol", Real, 0, np.inf)
        self._require("reg_covar", Real, 0, 1)
        if self.threads is not None:
            self._require("threads", Integral, 1, 2**16)
        if self.cuml not in CUML:
            raise ConfigurationError(f"cuml={self.cuml!r}: expected 'never' or 'auto'")
        if self.dtype not in ("float32", "float64"):
            raise ConfigurationError(f"dtype={self.dtype!r}: expected 'float32' or 'float64'")
        return MixtureSettings(
            k_min=int(self.k_min),
            k_max=int(self.k_max),
            n_init=int(self.n_init),
            tol=float(self.tol),
            max_iter=int(self.max_iter),
            reg_covar=float(self.reg_covar),
            seed=int(self.random_state),
            threads=self.threads,
            dtype=self.dtype,
        )

    def _require(self, name: str, kind: Any, low: float, high: float) -> None:
        value: Any = getattr(self, name)
        if not isinstance(value, kind) or isinstance(value, bool) or not low <= value <= high:
            noun = "a whole number" if kind is Integral else "a number"
            raise ConfigurationError(f"{name}={value!r}: expected {noun} from {low} to {high}")

    def _take(self, result: SweepResult) -> None:
        self.status_ = np.array(STATUSES)[result.status]
        self.calinski_harabasz_ = result.calinski_harabasz
        self.lower_bound_ = result.lower_bound
        self.n_iter_ = result.n_iter
        self.converged_ = result.converged
        self.n_components_ = result.n_components
        self.labels_ = result.labels
        self.weights_ = result.weights
        self.means_ = result.means
        self.covariances_ = result.covariances
        fitted = np.flatnonzero(result.n_components)
        if not result.converged[fitted, result.n_components[fitted] - self.k_min].all():
            message = (
                f"some chosen mixtures stopped at max_iter={self.max_iter} (see converged_): raise max_iter or tol"
            )
            warnings.warn(message, ConvergenceWarning, stacklevel=3)


def mixture_engine(name: str) -> MixtureEngine:
    """The engine of that name.

    Raises
    ------
    ConfigurationError
        There is no such engine.
    EngineError
        ``cuda`` is asked for and no device answers.
    """
    if name not in ENGINES:
        raise ConfigurationError(f"engine={name!r}: expected one of {', '.join(ENGINES)}")
    if name == "reference":
        return reference.fit_mixtures
    if gpu.resolved(name) == "cuda":
        gpu.require()
        return cuda.fit_mixtures
    return cpu.fit_mixtures


def _checked_scores(scores: ArrayLike) -> NDArray:
    array = as_floats(scores, "scores")
    if array.ndim != 3 or 0 in array.shape[1:] or array.shape[2] > MAX_DIMS:
        raise ValueError(
            f"scores have shape {array.shape}: expected (F, N, d), filters x samples x 1 to {MAX_DIMS} dimensions"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        total = array.sum()
    if not np.isfinite(total):  # one number tells whether a look at every one is due
        bad = np.argwhere(~np.isfinite(array))
        if len(bad):
            f, n, j = bad[0]
            raise CaptureError(
                f"scores of filter {f}, sample {n} hold {array[f, n, j]}: expected finite numbers; "
                "look for NaN or infinite activations in the model"
            )
    return array


def _checked_keys(keys: ArrayLike | None, n_filters: int) -> NDArray[np.uint64]:
    if keys is None:
        return np.arange(n_filters, dtype=np.uint64)
    array = np.asarray(keys)
    if array.shape != (n_filters,) or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"keys have shape {array.shape} and dtype {array.dtype}: expected ({n_filters},) integers")
    return array.astype(np.uint64)


def _checked_labels(
    initial_labels: Mapping[int, ArrayLike], settings: MixtureSettings, n_filters: int, n_samples: int
) -> dict[int, NDArray[np.int8]]:
    checked = {}
    for k, labels in initial_labels.items():
        array = np.asarray(labels)
        if k not in settings.component_counts:
            raise ValueError(f"initial_labels for K={k}: expected K from {settings.k_min} to {settings.k_max}")
        if array.shape != (n_filters, n_samples) or not np.issubdtype(array.dtype, np.integer):
            raise ValueError(
                f"initial_labels[{k}] have shape {array.shape} and dtype {array.dtype}: "
                f"expected ({n_filters}, {n_samples}) integers"
            )
        if array.size and (array.min() < 0 or array.max() >= k):
            raise ValueError(f"initial_labels[{k}] hold {array.min()} to {array.max()}: expected 0 to {k - 1}")
        checked[int(k)] = array.astype(np.int8)
    return checked
