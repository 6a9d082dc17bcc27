"""Where cuML serves, with scikit-learn's estimators in its place: what it is asked, and that results are the same."""

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from gmmcnn import config
from gmmcnn.errors import ConfigurationError
from gmmcnn.filters import fitting
from gmmcnn.mixture import cuda
from gmmcnn.mixture.problem import MixtureSettings
from gmmcnn.mixture.sweep import GaussianMixtureSweep
from gmmcnn.principal_components import cuda as pca_cuda
from gmmcnn.principal_components.pca import pca

seeds: list[int | None] = []
"""Of the k-means built."""


@pytest.fixture
def cuml(fibers: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A stand-in for cuML; returns the list of estimators built."""
    built: list[str] = []
    seeds.clear()

    class FlippedPCA(PCA):
        def __init__(self, n_components: int, output_type: str) -> None:
            built.append(f"PCA {n_components} {output_type}")
            super().__init__(n_components)
            self.output_type = output_type

        def fit_transform(self, X: np.ndarray, y: None = None) -> np.ndarray:
            scores = -super().fit_transform(np.asarray(X))  # its signs are its own
            self.components_ = -self.components_
            return scores

    class StandIn:
        def __init__(  # the names and defaults of cuML 26.10
            self,
            *,
            n_clusters: int = 8,
            max_iter: int = 300,
            tol: float = 1e-4,
            verbose: bool = False,
            random_state: int | None = None,
            init: str = "scalable-k-means++",
            n_init: int | str = "auto",
            oversampling_factor: float = 2.0,
            max_samples_per_batch: int = 32768,
            device_buffer_samples: int = 0,
            init_size: int = 0,
            output_type: str | None = None,
        ) -> None:
            built.append(f"KMeans {n_clusters} {n_init} {output_type}")
            seeds.append(random_state)
            self.model = KMeans(n_clusters, max_iter=max_iter, tol=tol, random_state=random_state, n_init=n_init)

        def fit_predict(self, X: Any, y: None = None, sample_weight: Any = None) -> np.ndarray:
            return self.model.fit_predict(np.asarray(X), y, sample_weight)

    module = ModuleType("cuml")
    vars(module).update(PCA=FlippedPCA, KMeans=StandIn)
    module.__spec__ = sys.__spec__
    monkeypatch.setitem(sys.modules, "cuml", module)
    return built


@pytest.mark.parametrize(("n_samples", "n_pixels"), [(60, 30), (60, 1)])
def test_pca_by_cuml_is_the_same_pca(cuml: list[str], n_samples: int, n_pixels: int) -> None:
    maps = np.random.default_rng(0).normal(size=(2, n_samples, n_pixels)).astype(np.float32)
    maps *= np.exp(-np.arange(n_pixels) / 4)
    found = pca_cuda.pca_on_device(maps, 2, solver="cuml")
    expected = pca(maps, 2, engine="reference")
    assert cuml == [f"PCA {min(2, n_pixels)} cupy"] * 2
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    np.testing.assert_allclose(found.explained_variance, expected.explained_variance, rtol=1e-4)


def test_auto_takes_cuml_for_large_problems_of_few_pixels_only(cuml: list[str]) -> None:
    assert pca_cuda.prefers_cuml(10**6, 1000)
    assert not pca_cuda.prefers_cuml(1000, 784)  # thousands of these make a layer
    assert not pca_cuda.prefers_cuml(10**4, 50176)  # a covariance of 10 GB
    assert not pca_cuda.prefers_cuml(10**9, 1)  # cuML needs two features
    pca_cuda.pca_on_device(np.random.default_rng(0).normal(size=(1, 20, 9)), 2)
    assert cuml == []


def test_auto_does_without_cuml(fibers: Any) -> None:
    assert not pca_cuda.prefers_cuml(10**6, 1000)
    with pytest.raises(ConfigurationError, match="solver='svd': expected one of auto, kernels, cuml"):
        pca_cuda.pca_on_device(np.zeros((1, 4, 4)), 2, solver="svd")


def test_starts_by_cuml_are_starts_of_the_engine(cuml: list[str]) -> None:
    rng = np.random.default_rng(0)
    scores = (rng.normal(size=(2, 90, 2)) + 9 * rng.integers(0, 3, (2, 90, 1))).astype(np.float32)
    settings = MixtureSettings(k_min=2, k_max=3, seed=5)
    keys = np.array([3, 8], np.uint64)
    starts = cuda.cuml_labels(scores, keys, settings)
    assert cuml == ["KMeans 2 1 cupy", "KMeans 3 1 cupy"] * 2
    assert len(set(seeds)) == 4
    alone = cuda.cuml_labels(scores[1:], keys[1:], settings)
    assert seeds[4:] == seeds[2:4]  # a filter's starts do not depend on the others
    assert all(np.array_equal(alone[k], starts[k][1:]) for k in starts)
    assert {k: labels.shape for k, labels in starts.items()} == {2: (2, 90), 3: (2, 90)}
    fitted = cuda.fit_mixtures(scores, np.arange(2, dtype=np.uint64), settings, starts)
    assert (fitted.n_components == 3).all()


@pytest.fixture
def small(cuml: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What cuML is asked, where 60 samples are many."""
    monkeypatch.setattr(cuda, "CUML_MIN_SAMPLES", 60)
    monkeypatch.setattr(cuda, "has_cuml", lambda: True)
    return cuml


CASES = [("auto", 60, True), ("auto", 59, False), ("never", 60, False)]


@pytest.mark.parametrize(("setting", "n_samples", "asked"), CASES)
def test_the_pipeline_asks_cuml_where_it_is_told_to(
    small: list[str], setting: str, n_samples: int, asked: bool
) -> None:
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(2, n_samples, 9)) + 9 * rng.integers(0, 3, (2, n_samples, 1))
    settings = config.Settings(engine=config.Engine("cuda", cuml=setting), gmm=config.Gmm(k_max=3, repeats=2))
    fits = fitting.fit_maps(maps.astype(np.float32), "conv", range(2), range(1), settings)
    assert (fits.n_components == 3).all()
    assert small == (["KMeans 2 1 cupy", "KMeans 3 1 cupy"] * 4 if asked else [])
    assert len(set(seeds)) == len(seeds)  # each repeat has starts of its own


def test_no_other_engine_asks_it_and_nothing_is_asked_where_it_is_missing(
    small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = np.random.default_rng(0).normal(size=(1, 60, 2))
    GaussianMixtureSweep(k_max=2, max_iter=500, engine="cpu", cuml="auto").fit(scores)
    monkeypatch.setattr(cuda, "has_cuml", lambda: False)
    GaussianMixtureSweep(k_max=2, max_iter=500, engine="cuda", cuml="auto").fit(scores)
    assert small == []
    with pytest.raises(ConfigurationError, match="cuml='always': expected 'never' or 'auto'"):
        GaussianMixtureSweep(cuml="always").fit(scores)
