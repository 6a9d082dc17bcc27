"""Decomposition by the Gram matrix on its own: every kind of spectrum, size, offset and scale."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gmmcnn.principal_components import gram
from gmmcnn.principal_components.orthogonal import CONSTANT, FINITE, NOT_FINITE
from gmmcnn.principal_components.pca import pca
from gmmcnn.principal_components.reference import exact_pca


def decomposed(maps: np.ndarray, d: int = 2) -> tuple[np.ndarray, ...]:
    """Kinds, whether converged, scores, variances and residuals of maps (F, N, P)."""
    scores = np.full((*maps.shape[:2], d), np.nan, maps.dtype)
    variance, residual = np.full((len(maps), d), np.nan), np.full(len(maps), np.nan)
    kind, converged = gram.gram_pca(np.ascontiguousarray(maps), d, scores, variance, residual)
    return kind, converged, scores, variance, residual


def with_spectrum(values: np.ndarray, n_samples: int, n_pixels: int, seed: int = 0) -> np.ndarray:
    """Maps (1, N, P) in float64 whose singular values about the mean are these."""
    rng = np.random.default_rng(seed)
    left = rng.normal(size=(n_samples, len(values)))
    left = np.linalg.qr(left - left.mean(axis=0))[0]
    right = np.linalg.qr(rng.normal(size=(n_pixels, len(values))))[0]
    return ((left * values) @ right.T)[None]


SPECTRA = {
    "geometric": 0.8 ** np.arange(40),
    "steep": 0.02 ** np.arange(3),
    "clustered": np.repeat([1.0, 0.9, 0.5, 0.1], [1, 1, 10, 20]),
    "rank one": np.array([1.0]),
    "rank two": np.array([1.0, 0.3]),
    "a close pair": np.r_[1.0, 0.99, 0.3 * 0.9 ** np.arange(30)],
    "noise behind a pair": np.r_[2.0, 1.5, np.linspace(1.0, 0.2, 60)],
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n_samples", "n_pixels"), [(200, 100), (1000, 100), (70, 96), (65, 111), (333, 64)])
@pytest.mark.parametrize("name", SPECTRA)
def test_scores_are_those_of_float64(name, n_samples, n_pixels, dtype):
    """Within 1e-5 of their scale; residual and orthogonality in units of the rounding of what was multiplied."""
    values = SPECTRA[name]
    maps = with_spectrum(values, n_samples, n_pixels).astype(dtype)
    kind, converged, scores, variance, residual = decomposed(maps)
    expected, expected_variance, _ = exact_pca(maps[0], 2)
    assert kind.tolist() == [FINITE]
    assert converged.all()
    np.testing.assert_allclose(scores[0], expected, atol=1e-5 * expected.std())
    np.testing.assert_allclose(variance[0], expected_variance, atol=1e-5 * expected_variance[0])
    assert residual[0] <= gram.TOLERANCE
    unit = np.finfo(dtype).eps * np.linalg.norm(maps[0].astype(np.float64)) ** 2
    first, second = scores[0].astype(np.float64).T
    assert abs(first @ second) <= max(10 * unit, 2 * gram.TOLERANCE * np.linalg.norm(first) * np.linalg.norm(second))


@settings(max_examples=40, deadline=None)
@given(
    n_samples=st.integers(17, 300),
    n_pixels=st.integers(17, 112),
    d=st.integers(1, 4),
    decay=st.floats(0.3, 0.85),
    offset=st.sampled_from([0.0, 1.0, -300.0]),
    scale=st.sampled_from([1e-4, 1.0, 1e4]),
)
def test_any_size_offset_and_scale(n_samples, n_pixels, d, decay, offset, scale):
    values = decay ** np.arange(min(n_samples - 1, n_pixels, 30))
    maps = ((with_spectrum(values, n_samples, n_pixels) + offset) * scale).astype(np.float32)
    _, converged, scores, _, _ = decomposed(maps, d)
    expected, _, _ = exact_pca(maps[0], d)
    assert converged.all()
    gaps = np.diff(-(values[: d + 1] ** 2)).min()
    rounding = 1e-6 / gaps  # by which float32's rounding of the Gram matrix turns a direction
    np.testing.assert_allclose(scores[0], expected, atol=(1e-5 + rounding) * np.abs(expected).max())


def with_an_outlier(size: float) -> np.ndarray:
    """Maps (1, N, P) whose first sample lies far out."""
    maps = with_spectrum(SPECTRA["geometric"], 200, 100)
    maps[0, 0, :50] += size
    return maps.astype(np.float32)


def test_an_outlying_first_sample_costs_no_digits():
    maps = with_an_outlier(1.0)
    expected, _, _ = exact_pca(maps[0], 2)
    _, converged, scores, _, _ = decomposed(maps)
    assert converged.all()
    np.testing.assert_allclose(scores[0], expected, atol=1e-5 * expected.std())


def test_an_eigenvalue_that_rounding_would_turn_is_left_to_passes_over_the_maps():
    maps = with_an_outlier(100.0)
    expected, variance, _ = exact_pca(maps[0], 2)
    assert gram.NEGLIGIBLE < variance[1] / variance[0] < gram.RESOLVED
    assert not decomposed(maps)[1].any()
    np.testing.assert_allclose(pca(maps).scores[0], expected, atol=1e-5 * expected.std())


@pytest.mark.parametrize("scale", [1e-14, 1e14])
def test_maps_beyond_the_squares_of_float32_are_left_alone(scale):
    kind, converged, scores, _, _ = decomposed((with_spectrum(SPECTRA["geometric"], 60, 40) * scale).astype(np.float32))
    assert kind.tolist() == [FINITE]
    assert not converged.any()
    assert np.isnan(scores).all()


def test_a_spectrum_without_a_gap_does_not_converge_and_says_so():
    maps = np.zeros((1, 101, 100), np.float32)
    maps[0, :100] = np.eye(100)
    assert not decomposed(maps)[1].any()


def test_noise_converges():
    """Where the Krylov iteration gives up: a product with the matrix costs so little that many are made."""
    maps = np.random.default_rng(0).normal(size=(1, 90, 90)).astype(np.float32)
    _, converged, scores, _, _ = decomposed(maps)
    expected, _, _ = exact_pca(maps[0], 2)
    assert converged.all()
    np.testing.assert_allclose(scores[0], expected, atol=1e-4 * expected.std())


def test_filters_of_every_kind_are_told_apart_and_do_not_meet():
    good = with_spectrum(SPECTRA["geometric"], 150, 60).astype(np.float32)[0]
    constant, nan, infinite, huge = np.full_like(good, 0.7), good.copy(), good.copy(), good.copy()
    nan[3, 7], infinite[149, 59] = np.nan, np.inf
    huge[0], huge[1] = 3e38, -3e38
    kind, converged, scores, _, residual = decomposed(np.stack([good, constant, nan, infinite, huge, good]))
    assert kind.tolist() == [FINITE, CONSTANT, NOT_FINITE, NOT_FINITE, NOT_FINITE, FINITE]
    assert converged.tolist() == [True, True, False, False, False, True]
    np.testing.assert_array_equal(scores[0], scores[5])
    np.testing.assert_array_equal(scores[0], decomposed(good[None])[2][0])
    assert residual[1] == 0
    assert 0 < residual[0] == residual[5]
