"""Principal components against scikit-learn in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
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


def by_singular_values(maps, n_components):
    """Scores (F, N, d) of maps (F, N, P) in float64, over a unit (F,) and of any sign, and that unit."""
    scores = []
    for x in maps.astype(np.float64):
        largest = np.abs(x).max()
        centred = x / largest - (x / largest).mean(axis=0)
        spread = np.abs(centred).max()
        left, values, _ = np.linalg.svd(centred / spread, full_matrices=False)
        scores.append((left[:, :n_components] * values[:n_components], spread * largest))
    return np.array([s for s, _ in scores]), np.array([unit for _, unit in scores])


def assert_equals_svd(result, maps, tolerance):
    expected, unit = by_singular_values(maps, result.scores.shape[2])
    found = result.scores.astype(np.float64) / unit[:, None, None]
    signs = np.sign((found * expected).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(found, signs * expected, atol=tolerance * np.abs(expected).max())
    assert (result.residual <= 1e-4).all()  # false for NaN


LOW_RANK = np.random.default_rng(0).normal(size=(120, 3)) * [10, 5, 2]


def low_rank(seed, n_pixels):
    """Maps of three patterns and a little noise, spread 1, on which the iteration converges."""
    rng = np.random.default_rng(seed)
    maps = LOW_RANK @ rng.normal(size=(3, n_pixels)) / 10 + 0.02 * rng.normal(size=(120, n_pixels))
    return maps[None] / np.abs(maps).max()


@engines
@settings(max_examples=30, deadline=None)
@given(exponent=st.floats(-37, 38), seed=st.integers(0, 9), n_pixels=st.sampled_from([4, 36, 100]))
def test_float32_maps_of_every_scale(engine, exponent, seed, n_pixels):
    maps = (low_rank(seed, n_pixels) * 10**exponent).astype(np.float32)
    assert_equals_svd(pca(maps, engine=engine, threads=1), maps, SCORE_TOLERANCE)


@engines
@settings(max_examples=30, deadline=None)
@given(exponent=st.floats(-300, 300), seed=st.integers(0, 9), n_pixels=st.sampled_from([4, 36, 100]))
def test_float64_maps_of_every_scale(engine, exponent, seed, n_pixels):
    maps = low_rank(seed, n_pixels) * 10**exponent
    assert_equals_svd(pca(maps, engine=engine, threads=1), maps, SCORE_TOLERANCE)


@engines
@settings(max_examples=30, deadline=None)
@given(
    offset=st.floats(0, 7).map(lambda e: 10**e),
    dtype=st.sampled_from(["float32", "float64"]),
    scale=st.sampled_from([1e-20, 1.0, 1e20]),
    n_pixels=st.sampled_from([4, 36, 100]),
)
def test_maps_with_any_offset(engine, offset, dtype, scale, n_pixels):
    maps = ((low_rank(1, n_pixels) + offset) * scale).astype(dtype)
    assert_equals_svd(pca(maps, engine=engine, threads=1), maps, 10 * SCORE_TOLERANCE)


def test_a_pixel_of_another_scale_does_not_drown_the_others():
    maps = low_rank(0, 100).astype(np.float32)
    maps[:, :, 7] = 1e30
    assert_equals_svd(pca(maps), np.delete(maps, 7, axis=2), SCORE_TOLERANCE)


def test_scores_beyond_float32_are_float64_and_beyond_float64_an_error():
    maps = np.full((1, 60, 100), 3e38, np.float32)
    maps[0, ::2] = -3e38
    assert pca(maps).scores.dtype == np.float64
    assert_equals_svd(pca(maps), maps, SCORE_TOLERANCE)
    with pytest.raises(CaptureError, match="filter 0 are so large that their scores exceed float64"):
        pca(np.full((1, 60, 100), 1.7e308) * np.where(np.arange(60) % 2, 1, -1)[:, None])


@engines
@pytest.mark.parametrize("dtype", [">f8", "int64", "longdouble", "int32", ">f4", "float16"])
def test_other_types_keep_their_values(engine, dtype):
    maps = np.round(100 * low_rank(0, 100)).astype(np.float16)
    expected = pca(maps.astype(np.float64), engine="reference")
    np.testing.assert_allclose(pca(maps.astype(dtype), engine=engine).scores, expected.scores, atol=1e-2)
    if np.dtype(dtype).itemsize >= 8:
        far = (maps.astype(dtype) + np.dtype(dtype).type(10**8)).astype(dtype)
        np.testing.assert_allclose(pca(far, engine=engine).scores, expected.scores, atol=1e-2)


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
