"""Where cuML serves, with scikit-learn's estimators in its place: what it is asked, and that results are the same."""

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from gmmcnn.errors import ConfigurationError
from gmmcnn.mixture import cuda
from gmmcnn.mixture.problem import MixtureSettings
from gmmcnn.principal_components import cuda as pca_cuda
from gmmcnn.principal_components.pca import pca


@pytest.fixture
def cuml(fibers: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A stand-in for cuML; returns the list of estimators built."""
    built: list[str] = []

    class FlippedPCA(PCA):
        def __init__(self, n_components: int, output_type: str) -> None:
            built.append(f"PCA {n_components} {output_type}")
            super().__init__(n_components)
            self.output_type = output_type

        def fit_transform(self, X: np.ndarray, y: None = None) -> np.ndarray:
            scores = -super().fit_transform(np.asarray(X))  # its signs are its own
            self.components_ = -self.components_
            return scores

    class RecordedKMeans(KMeans):
        def __init__(self, n_clusters: int, n_init: int, random_state: int, output_type: str) -> None:
            built.append(f"KMeans {n_clusters} {random_state}")
            super().__init__(n_clusters=n_clusters, n_init=n_init, random_state=random_state)
            self.output_type = output_type

    module = ModuleType("cuml")
    vars(module).update(PCA=FlippedPCA, KMeans=RecordedKMeans)
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
    starts = cuda.cuml_labels(scores, settings)
    assert cuml == ["KMeans 2 5", "KMeans 3 5"] * 2
    assert {k: labels.shape for k, labels in starts.items()} == {2: (2, 90), 3: (2, 90)}
    fitted = cuda.fit_mixtures(scores, np.arange(2, dtype=np.uint64), settings, starts)
    assert (fitted.n_components == 3).all()
