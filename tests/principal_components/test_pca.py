"""Principal components against scikit-learn in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from gmmcnn.errors import CaptureError, ConfigurationError, EngineError
from gmmcnn.principal_components.pca import pca
from gmmcnn.principal_components.reference import exact_pca

SCORE_TOLERANCE = 1e-4
"""Relative to the scale of the scores: an angle of 3e-5, the iteration's own bound, and float32 rounding."""

engines = pytest.mark.parametrize("engine", ["cpu", "reference"])


def feature_maps(n_filters, n_samples, n_pixels, seed=0):
    """Rectified maps with a spectrum that falls as in trained networks."""
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(n_filters, n_samples, 12)) * 1.7 ** -np.arange(12)
    maps = factors @ rng.normal(size=(n_filters, 12, n_pixels)) + 0.3 * rng.normal(
        size=(n_filters, n_samples, n_pixels)
    )
    return np.maximum(maps, 0).astype(np.float32)


def assert_equals_scikit_learn(maps, n_components, result):
    for f, filter_maps in enumerate(maps.astype(np.float64)):
        kept = min(n_components, *filter_maps.shape)
        expected = PCA(kept, svd_solver="full").fit(filter_maps)
        scores = expected.transform(filter_maps)
        scale = max(scores.std(axis=0).max(), 1e-30)
        np.testing.assert_allclose(result.scores[f, :, :kept], scores, atol=SCORE_TOLERANCE * scale)
        variance = expected.explained_variance_
        np.testing.assert_allclose(result.explained_variance[f, :kept], variance, atol=SCORE_TOLERANCE * variance[0])
        assert not result.scores[f, :, kept:].any()


@engines
@pytest.mark.parametrize(
    ("n_samples", "n_pixels", "n_components"),
    [(200, 784, 2), (500, 100, 2), (120, 121, 3), (64, 1000, 8), (300, 49, 1), (50, 1, 2), (30, 4, 8), (3, 50, 2)],
)
def test_equals_scikit_learn(engine, n_samples, n_pixels, n_components):
    maps = feature_maps(3, n_samples, n_pixels)
    assert_equals_scikit_learn(maps, n_components, pca(maps, n_components, engine=engine))


@pytest.mark.parametrize("scale", [1e-30, 1e-19, 1e-13, 1e-12, 1e-9, 1e-6, 1e6])
def test_maps_of_any_scale_are_decomposed_alike(scale):
    maps = feature_maps(2, 200, 196)
    expected, found = pca(maps), pca((maps * scale).astype(np.float32))
    np.testing.assert_allclose(found.scores / scale, expected.scores, atol=SCORE_TOLERANCE * expected.scores.std())


def test_equals_scikit_learn_on_real_images(digits):
    """Images of digits seen through random filters of 3 x 3, rectified."""
    torch.manual_seed(0)
    with torch.no_grad():
        responses = torch.relu(torch.nn.Conv2d(1, 6, 3, padding=1)(digits.train.images[:500]))
    for maps in [responses.flatten(2).transpose(0, 1).numpy()]:
        live = maps[maps.std(axis=(1, 2)) > 0]
        assert_equals_scikit_learn(live, 2, pca(live))


@pytest.mark.slow
def test_large_maps():
    maps = feature_maps(1, 60, 50_176)
    result = pca(maps)
    assert_equals_scikit_learn(maps, 2, result)
    assert result.residual[0] < 1e-4


def test_float64_stays_float64():
    maps = feature_maps(2, 200, 150).astype(np.float64)
    result = pca(maps)
    assert result.scores.dtype == np.float64
    assert_equals_scikit_learn(maps, 2, result)
    assert pca(maps.astype(np.float32)).scores.dtype == np.float32


def test_a_large_mean_does_not_drown_the_variation():
    maps = feature_maps(2, 300, 200)
    shifted = maps + np.float32(50.0)
    assert_equals_scikit_learn(shifted, 2, pca(shifted))


@engines
def test_constant_maps_give_zeros(engine):
    maps = np.full((2, 80, 100), 0.1, np.float32)
    maps[1] = np.random.default_rng(0).random(100)  # every sample the same map
    result = pca(maps, engine=engine)
    assert not result.scores.any()
    assert not result.explained_variance.any()


@engines
def test_one_active_sample(engine):
    maps = np.zeros((1, 200, 784), np.float32)
    maps[0, 17, 100:130] = 2.0
    result = pca(maps, engine=engine)
    centred = maps[0].astype(float) - maps[0].mean(axis=0)
    assert np.linalg.norm(result.scores[0, :, 0]) == pytest.approx(np.linalg.norm(centred), rel=1e-6)
    assert np.abs(result.scores[0, :, 1]).max() < 1e-5
    assert result.scores[0, 17, 0] > 0


def test_equal_eigenvalues_give_orthogonal_scores():
    """No method can tell apart directions of equal variance, but any two of them must be orthogonal eigenvectors."""
    maps = np.zeros((1, 300, 200), np.float32)
    maps[0, :200] = 3 * np.eye(200)
    result = pca(maps)
    scores = result.scores[0].astype(np.float64)
    assert abs(scores[:, 0] @ scores[:, 1]) < 1e-5 * (scores[:, 0] @ scores[:, 0])
    np.testing.assert_allclose(result.explained_variance[0], 9 / 299, rtol=1e-5)
    assert result.residual[0] < 1e-5


def test_what_does_not_converge_is_decomposed_exactly(monkeypatch):
    """A flat spectrum, as of noise, is the iteration's worst case."""
    maps = np.random.default_rng(0).normal(size=(2, 400, 300)).astype(np.float32)
    calls = []
    monkeypatch.setattr("gmmcnn.principal_components.pca.exact_pca", lambda *a: calls.append(1) or exact_pca(*a))
    result = pca(maps, threads=1)
    assert calls == [1, 1]
    assert_equals_scikit_learn(maps, 2, result)
    assert result.residual.max() < 1e-12


def test_results_do_not_depend_on_threads_order_or_subset():
    maps = feature_maps(40, 200, 120)
    whole, threaded = pca(maps, threads=1), pca(maps, threads=3)
    order = np.random.default_rng(0).permutation(40)[:11]
    some = pca(maps[order], threads=2)
    np.testing.assert_array_equal(whole.scores, threaded.scores)
    np.testing.assert_array_equal(whole.scores[order], some.scores)
    np.testing.assert_array_equal(whole.explained_variance[order], some.explained_variance)


@given(seed=st.integers(0, 1000), n_samples=st.integers(40, 90), n_pixels=st.integers(33, 80))
def test_scores_are_centred_uncorrelated_and_ordered(seed, n_samples, n_pixels):
    scores = pca(feature_maps(1, n_samples, n_pixels, seed), engine="cpu").scores[0].astype(np.float64)
    scale = scores.std()
    np.testing.assert_allclose(scores.mean(axis=0), 0, atol=1e-5 * scale)
    covariance = np.cov(scores.T)
    assert covariance[0, 0] >= covariance[1, 1]
    assert abs(covariance[0, 1]) < 1e-3 * scale**2


def test_tensors_are_taken():
    maps = feature_maps(2, 50, 40)
    np.testing.assert_array_equal(pca(torch.from_numpy(maps)).scores, pca(maps).scores)


@engines
@pytest.mark.parametrize("shape", [(3, 60, 70), (3, 10, 5)])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_maps_that_are_not_finite_are_named(engine, shape, bad):
    maps = feature_maps(*shape)
    maps[1, 4, 2] = bad
    with pytest.raises(CaptureError, match="filter 1, sample 4 hold NaN or infinity"):
        pca(maps, engine=engine)


def test_impossible_requests_are_named(monkeypatch):
    with pytest.raises(ValueError, match=r"shape \(4, 5\): expected \(F, N, P\)"):
        pca(np.zeros((4, 5)))
    with pytest.raises(ConfigurationError, match="n_components=0"):
        pca(np.zeros((1, 4, 5)), 0)
    with pytest.raises(ConfigurationError, match="engine='fast'"):
        pca(np.zeros((1, 4, 5)), engine="fast")
    monkeypatch.setattr("gmmcnn.hardware.gpu.why_unavailable", lambda: "no CUDA device is visible")
    with pytest.raises(EngineError, match="no CUDA device is visible"):
        pca(np.zeros((1, 4, 5)), engine="cuda")


@pytest.mark.parametrize(("engine", "n_exact"), [("cpu", 0), ("reference", 3)])
def test_the_reference_decomposes_every_filter_in_full_and_the_compiled_engine_none_that_converges(
    monkeypatch, engine, n_exact
):
    calls = []
    monkeypatch.setattr("gmmcnn.principal_components.pca.exact_pca", lambda *a: calls.append(1) or exact_pca(*a))
    pca(feature_maps(3, 200, 150), engine=engine, threads=1)
    assert len(calls) == n_exact
