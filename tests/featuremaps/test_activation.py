import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gmmcnn.featuremaps import activation_statistics


def test_activation_statistics_by_hand() -> None:
    maps = np.array([[[0, 2], [0, 0], [1, 3]], [[-1, 1], [-2, -2], [0, 0]], [[0, 0]] * 3], np.float32)
    mean_activation, active_share = activation_statistics(maps)
    np.testing.assert_array_equal(mean_activation, [1.0, 1.0, 0.0])
    np.testing.assert_array_equal(active_share, [2 / 3, 1 / 3, 0.0])
    assert mean_activation.dtype == np.float64


@given(seed=st.integers(0, 999), cut=st.integers(0, 5), n_pixels=st.sampled_from([1, 7, 5000]))
def test_activation_statistics_do_not_depend_on_blocks(seed: int, cut: int, n_pixels: int) -> None:
    maps = np.random.default_rng(seed).standard_normal((5, 3, n_pixels), np.float32)
    whole = activation_statistics(maps)
    parts = [activation_statistics(part) for part in (maps[:cut], maps[cut:])]
    for one, other in zip(whole, zip(*parts, strict=True), strict=True):
        np.testing.assert_array_equal(one, np.concatenate(other))
    np.testing.assert_array_equal(whole[0], activation_statistics(np.asfortranarray(maps))[0])
    np.testing.assert_allclose(whole[0], np.abs(maps).mean(axis=(1, 2), dtype=np.float64), rtol=1e-12)
