"""The exact decomposition against scikit-learn's and against what defines it."""

import numpy as np
import pytest
import threadpoolctl
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.decomposition import PCA

from gmmcnn.errors import CaptureError
from gmmcnn.hardware.threads import one_blas_thread
from gmmcnn.principal_components.reference import (
    checked_maps,
    component_signs,
    exact_pca,
    require_finite,
)

shapes = st.sampled_from([(12, 5), (5, 12), (8, 8), (2, 6), (6, 1), (1, 4)])


def maps_of(shape: tuple[int, int], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).gamma(0.5, size=shape)


def test_a_hand_computed_decomposition():
    """Around (5, 7), samples at ±3 along the second pixel, ±1 along the first: variances 2 · 9 / 3 and 2 · 1 / 3."""
    maps = np.array([[5, 10], [5, 4], [6, 7], [4, 7]], float)
    scores, variance, residual = exact_pca(maps, 2)
    np.testing.assert_allclose(scores, [[3, 0], [-3, 0], [0, 1], [0, -1]], atol=1e-12)
    np.testing.assert_allclose(variance, [6, 2 / 3])
    assert residual < 1e-15


@pytest.mark.parametrize("shape", [(20, 50), (50, 20)])
def test_the_residual_is_that_of_the_eigenpairs_found(shape):
    """Relative to the first eigenvalue, whatever the unit: of an exact decomposition rounding alone is left."""
    for factor in (1e-6, 1.0, 1e6):
        assert 0 < exact_pca(factor * maps_of(shape, 0), 3)[2] < 1e-12


def test_columns_beyond_the_rank_are_zero():
    scores, variance, _ = exact_pca(maps_of((3, 2), 0), 5)
    assert not scores[:, 2:].any()
    assert not variance[2:].any()
    assert scores[:, :2].any(axis=0).all()


@pytest.mark.parametrize("maps", [np.full((5, 3), 0.1, np.float32), np.tile([0.1, 0.7, 0.3], (4, 1)), np.ones((1, 3))])
def test_maps_that_are_alike_on_every_sample_have_no_scores_at_all(maps):
    scores, variance, residual = exact_pca(maps, 2)
    assert not scores.any()
    assert not variance.any()
    assert residual == 0


def test_maps_are_left_as_they_are():
    maps = maps_of((6, 4), 0)
    before = maps.copy()
    exact_pca(maps, 2)
    np.testing.assert_array_equal(maps, before)


def test_the_largest_entry_decides_the_sign_the_first_on_a_tie():
    components = np.array([[0.1, -0.9, 0.2], [-0.1, 0.9, 0.2], [-0.5, 0.5, 0.0], [0.0, 0.0, 0.0]])
    assert component_signs(components).tolist() == [-1, 1, -1, 1]


@given(arrays(np.float64, (3, 4), elements=st.integers(-5, 5).map(float)))
def test_signed_components_have_a_positive_largest_entry(components):
    signed = component_signs(components)[:, None] * components
    assert (signed.max(axis=1) >= -signed.min(axis=1)).all()
    np.testing.assert_array_equal(component_signs(signed), 1)


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        (np.zeros((2, 3, 4), np.float32), np.float32), (np.zeros((2, 3, 4)), np.float64),
        (np.zeros((2, 3, 4), np.uint8), np.float32), (np.zeros((2, 3, 4), np.float16), np.float32),
        ([[[1, 2], [3, 4]]], np.float64), (torch.zeros(2, 3, 4), np.float32), (np.zeros((0, 3, 4)), np.float64),
    ],
)  # fmt: skip
def test_maps_become_contiguous_floats(given, dtype):
    maps = checked_maps(given)
    assert maps.dtype == dtype
    assert maps.ndim == 3
    assert maps.flags.c_contiguous


def test_what_is_right_already_is_not_copied_and_what_is_strided_is():
    maps = np.zeros((4, 3, 2), np.float32)
    assert checked_maps(maps) is maps
    assert checked_maps(maps.transpose(1, 0, 2)).flags.c_contiguous


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4, 5), (2, 0, 4), (2, 3, 0)])
def test_maps_of_another_shape_are_named(shape):
    with pytest.raises(ValueError, match=r"maps have shape .*: expected \(F, N, P\)"):
        checked_maps(np.zeros(shape))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_sample_that_is_not_finite_is_named(bad):
    maps = np.zeros((5, 3), np.float32)
    require_finite(maps, 7)
    maps[[2, 4], 1] = bad
    with pytest.raises(CaptureError, match="filter 7, sample 2 hold NaN or infinity"):
        require_finite(maps, 7)


def test_large_finite_maps_are_finite_though_their_sum_in_float32_is_not():
    require_finite(np.full((4, 4), np.finfo(np.float32).max), 0)


def test_blas_has_one_thread_inside_and_as_many_as_before_after_it():
    def threads():
        return [pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]

    before = threads()
    with one_blas_thread():
        assert set(threads()) <= {1}
    assert threads() == before


@given(shape=st.sampled_from([(12, 5), (5, 12), (8, 8), (3, 9)]), seed=st.integers(0, 10**6), n=st.integers(1, 4))
def test_equals_scikit_learn_wide_and_tall(shape, seed, n):
    maps = maps_of(shape, seed)
    scores, variance, residual = exact_pca(maps, n)
    kept = min(n, shape[0] - 1, shape[1])
    expected = PCA(kept, svd_solver="full").fit(maps)
    np.testing.assert_allclose(variance[:kept], expected.explained_variance_, rtol=1e-9)
    scale = np.sqrt(variance[0])
    np.testing.assert_allclose(scores[:, :kept], expected.transform(maps), atol=1e-6 * scale)
    assert residual < 1e-12


@given(shape=shapes, seed=st.integers(0, 10**6), n=st.integers(1, 8))
def test_scores_are_centred_uncorrelated_and_ordered(shape, seed, n):
    scores, variance, _ = exact_pca(maps_of(shape, seed), n)
    assert scores.shape == (shape[0], n)
    assert variance.shape == (n,)
    scale = max(variance[0], 1e-300)
    assert (np.diff(variance) <= 1e-12 * scale).all()
    assert (variance >= 0).all()
    np.testing.assert_allclose(scores.sum(axis=0), 0, atol=1e-6 * np.sqrt(scale))
    divisor = max(shape[0] - 1, 1)
    np.testing.assert_allclose(scores.T @ scores / divisor, np.diag(variance), atol=1e-7 * scale)


@given(shape=shapes, seed=st.integers(0, 10**6), factor=st.sampled_from([2.0**-30, 8.0, 2.0**40]))
def test_scores_go_with_the_unit_and_not_with_an_offset(shape, seed, factor):
    maps = maps_of(shape, seed)
    scores, variance, _ = exact_pca(maps, 2)
    scaled, scaled_variance, _ = exact_pca(factor * maps, 2)
    np.testing.assert_allclose(scaled, factor * scores, atol=1e-7 * factor * np.abs(maps).max())
    np.testing.assert_allclose(scaled_variance, factor**2 * variance, atol=1e-12 * factor**2 * np.square(maps).sum())
    np.testing.assert_allclose(exact_pca(maps + 3, 2)[1], variance, atol=1e-12 * np.square(maps + 3).sum())
