"""Fits in memory and on disk."""

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmmcnn import config
from gmmcnn.errors import StoreError
from gmmcnn.filters.fits import LayerFits, cluster_sizes
from gmmcnn.filters.fitting import fit_maps

F, B, R, N, P, D, K = 2, 3, 4, 30, 6, 2, 5
SETTINGS = config.Settings(gmm=config.Gmm(k_max=K, n_init=1, repeats=R))


@pytest.fixture(scope="module")
def fits() -> LayerFits:
    maps = np.random.default_rng(0).gamma(0.5, size=(F, B * N, P)).astype(np.float32)
    return fit_maps(maps, "conv1", range(F), range(B), SETTINGS)


def assert_equal(one: LayerFits, other: LayerFits) -> None:
    for field in fields(LayerFits):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name), err_msg=field.name)


def test_arrays_have_the_documented_axes(fits):
    n_k = K - SETTINGS.gmm.k_min + 1
    shapes = {field.name: getattr(fits, field.name).shape for field in fields(LayerFits)}
    of_the_maps = {"scores": (N, D), "explained_variance": (D,), "mean_activation": (), "active_share": ()}
    of_the_mixtures = dict.fromkeys(["calinski_harabasz", "lower_bound", "n_iter", "converged"], (n_k,))
    of_the_mixtures |= {"status": (), "n_components": (), "labels": (N,)}
    of_the_mixtures |= {"weights": (K,), "means": (K, D), "covariances": (K, D, D)}
    assert shapes == {name: (F, B, *rest) for name, rest in of_the_maps.items()} | {
        name: (F, B, R, *rest) for name, rest in of_the_mixtures.items()
    }
    assert len(fits) == F
    assert fits.live.shape == (F, B, R)


def test_what_is_saved_is_what_is_loaded(fits, tmp_path):
    fits.save(tmp_path / "fits.npz")
    assert_equal(LayerFits.load(tmp_path / "fits.npz"), fits)


def test_a_file_that_keeps_repeats_among_the_batches_still_opens(fits, tmp_path):
    arrays = {field.name: getattr(fits, field.name) for field in fields(LayerFits)}
    names = list(arrays)
    for name in names[names.index("status") :]:
        arrays[name] = arrays[name].reshape(F, B * R, *arrays[name].shape[3:])
    np.savez(tmp_path / "earlier.npz", **arrays)
    assert_equal(LayerFits.load(tmp_path / "earlier.npz"), fits)


def test_a_damaged_file_is_named_with_the_remedy(fits, tmp_path):
    path = tmp_path / "fits.npz"
    fits.save(path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(StoreError, match=r"fits\.npz.*task=fit"):
        LayerFits.load(path)


def test_parts_are_joined_by_filters_or_by_batches(fits):
    def part(filters: slice, batches: slice) -> LayerFits:
        return LayerFits(**{field.name: getattr(fits, field.name)[filters, batches] for field in fields(LayerFits)})

    everything = slice(None)
    assert_equal(LayerFits.concatenate([part(slice(1), everything), part(slice(1, None), everything)]), fits)
    assert_equal(LayerFits.concatenate([part(everything, slice(2)), part(everything, slice(2, 3))], axis=1), fits)


@given(st.lists(st.lists(st.integers(-1, 4), min_size=3, max_size=3), min_size=1, max_size=5))
def test_cluster_sizes_count_what_numpy_counts(labels):
    sizes = cluster_sizes(np.array(labels, np.int16), 5)
    assert sizes.tolist() == [[row.count(k) for k in range(5)] for row in labels]
    assert cluster_sizes(np.full(3, -1, np.int16), 0).shape == (0,)  # of a filter without clusters


def test_sizes_of_clusters_are_counted_once(fits):
    assert fits.cluster_sizes.shape == (F, B, R, K)
    assert (fits.cluster_sizes.sum(axis=-1) == (fits.labels >= 0).sum(axis=-1)).all()
    assert fits.cluster_sizes is fits.cluster_sizes
