"""The compiled iteration on its own: what it fills in, what it leaves, and how it calls what maps are."""

import numpy as np
import pytest

from gmmcnn.principal_components import krylov
from gmmcnn.principal_components.reference import exact_pca

D = 2


def maps_of(n_samples: int, n_pixels: int, seed: int = 0) -> np.ndarray:
    """Rectified maps (N, P) with a spectrum that falls as in trained networks."""
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(n_samples, 12)) * 1.7 ** -np.arange(12)
    noise = 0.3 * rng.normal(size=(n_samples, n_pixels))
    return np.maximum(factors @ rng.normal(size=(12, n_pixels)) + noise, 0).astype(np.float32)


def decomposed(*maps: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Kinds, whether converged, scores, variances and residuals of some filters' maps."""
    stack = np.ascontiguousarray(np.stack(maps))
    scores = np.full((len(stack), stack.shape[1], D), np.nan, stack.dtype)
    variance, residual = np.full((len(stack), D), np.nan), np.full(len(stack), np.nan)
    kind, converged = krylov.krylov_pca(stack, D, scores, variance, residual)
    return kind, converged, scores, variance, residual


@pytest.mark.parametrize("shape", [(61, 35), (37, 150), (150, 47)])
def test_converged_pairs_are_those_of_the_exact_decomposition(shape):
    """Sides that are no multiples of a vector, of a group of rows, or of a chunk."""
    maps = maps_of(*shape)
    kind, converged, scores, variance, residual = decomposed(maps)
    expected, expected_variance, _ = exact_pca(maps, D)
    assert kind.tolist() == [krylov.FINITE]
    assert converged.all()
    np.testing.assert_allclose(scores[0], expected, atol=1e-4 * expected.std())
    np.testing.assert_allclose(variance[0], expected_variance, rtol=1e-4)
    assert residual[0] < 1e-4


def test_filters_of_every_kind_are_told_apart_and_do_not_meet():
    good = maps_of(60, 40)
    constant, nan, infinite = np.full_like(good, 0.7), good.copy(), good.copy()
    nan[3, 7], infinite[59, 39] = np.nan, np.inf
    kind, converged, scores, variance, residual = decomposed(good, constant, nan, infinite, good)
    assert kind.tolist() == [krylov.FINITE, krylov.CONSTANT, krylov.NOT_FINITE, krylov.NOT_FINITE, krylov.FINITE]
    assert converged[[0, 4]].all()
    np.testing.assert_array_equal(scores[0], scores[4])
    np.testing.assert_array_equal(variance[0], variance[4])
    np.testing.assert_array_equal(scores[0], decomposed(good)[2][0])
    assert residual[0] == residual[4] >= 0


def test_a_spectrum_without_a_gap_does_not_converge_and_says_so():
    noise = np.random.default_rng(0).normal(size=(400, 300)).astype(np.float32)
    kind, converged, *_ = decomposed(noise)
    assert kind.tolist() == [krylov.FINITE]
    assert not converged.any()


def test_maps_are_only_read():
    maps = maps_of(60, 40)
    maps.flags.writeable = False
    assert decomposed(maps)[1].all()


def test_maps_of_few_directions_are_complete_before_the_passes_are_used_up():
    """Of rank two: the space has no further directions, and its pairs are exact."""
    rng = np.random.default_rng(0)
    maps = (rng.normal(size=(80, 2)) * [3, 1] @ rng.normal(size=(2, 60))).astype(np.float32)
    _, converged, scores, variance, _ = decomposed(maps)
    expected, expected_variance, _ = exact_pca(maps, D)
    assert converged.all()
    np.testing.assert_allclose(scores[0], expected, atol=1e-4 * expected.std())
    np.testing.assert_allclose(variance[0], expected_variance, rtol=1e-4)
