"""Fits of a store: kept, reused, resumed, and the same wherever blocks begin."""

from dataclasses import fields, replace

import numpy as np
import pytest

from gmmcnn import config, fitting
from gmmcnn.errors import ConfigurationError
from gmmcnn.featuremaps import extract
from gmmcnn.fits import LayerFits

N = 40
SETTINGS = config.Settings(gmm=config.Gmm(k_max=4, n_init=2))


@pytest.fixture(scope="module")
def store(_digits_cnn, digits, tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "maps.zarr"
    return extract(_digits_cnn[0], digits.train.images[: 3 * N], path, block_samples=N)


def equal(one: LayerFits, other: LayerFits) -> bool:
    def same(a, b):
        return np.array_equal(a, b, equal_nan=a.dtype.kind == "f")

    return all(same(getattr(one, f.name), getattr(other, f.name)) for f in fields(LayerFits))


def all_equal(one, other) -> bool:
    return one.layers.keys() == other.layers.keys() and all(equal(one.layers[k], other.layers[k]) for k in one.layers)


def test_every_filter_of_every_batch_is_fitted(store, tmp_path):
    done = []
    fits = fitting.fit_store(store, tmp_path, batch_samples=N, settings=SETTINGS, advance=done.append)
    assert {layer: len(fit) for layer, fit in fits.layers.items()} == {k: t.n_filters for k, t in store.layers.items()}
    assert (fits.n_batches, fits.n_samples, fits.n_filters) == (3, N, 112)
    assert sum(done) == fitting.n_fits(store, N) == 336
    for layer in fits.layers.values():
        assert layer.scores.shape[1:] == (3, N, 2)
        chosen = layer.n_components > 0
        assert (layer.labels[chosen].max(axis=-1) < layer.n_components[chosen]).all()
        assert np.isfinite(layer.scores).all()


@pytest.mark.parametrize("bytes_per_block", [1, 20_000, 10**6])
def test_no_result_depends_on_the_blocks(store, tmp_path, monkeypatch, bytes_per_block):
    whole = fitting.fit_store(store, tmp_path / "whole", batch_samples=N, settings=SETTINGS)
    monkeypatch.setattr(fitting, "BYTES_PER_BLOCK", bytes_per_block)
    parts = fitting.fit_store(store, tmp_path / "parts", batch_samples=N, settings=SETTINGS)
    assert all_equal(whole, parts)


@pytest.mark.parametrize("threads", [1, 3])
def test_no_result_depends_on_threads(store, tmp_path, threads):
    one = fitting.fit_store(store, tmp_path / "a", batch_samples=N, settings=SETTINGS)
    settings = replace(SETTINGS, engine=config.Engine(threads=threads))
    assert all_equal(one, fitting.fit_store(store, tmp_path / "b", batch_samples=N, settings=settings))


def test_what_is_fitted_is_read_and_other_settings_are_fitted_beside_it(store, tmp_path, monkeypatch):
    first = fitting.fit_store(store, tmp_path, batch_samples=N, settings=SETTINGS)
    other = replace(SETTINGS, gmm=config.Gmm(k_max=3))
    assert fitting.load_fits(tmp_path, list(store.layers), N, other) is None
    fitting.fit_store(store, tmp_path, batch_samples=N, settings=other)
    monkeypatch.setattr(fitting, "fit_maps", None)
    assert all_equal(first, fitting.fit_store(store, tmp_path, batch_samples=N, settings=SETTINGS))
    loaded = fitting.load_fits(tmp_path, list(store.layers), N, SETTINGS)
    assert loaded is not None
    assert all_equal(first, loaded)


def test_other_starts_for_the_same_maps(store, tmp_path):
    """Only the mixtures may differ: scores and activations do not depend on where EM starts."""
    layers = [
        fitting.fit_store(store, tmp_path, batch_samples=N, settings=settings).layers["features.conv1"]
        for settings in (SETTINGS, replace(SETTINGS, gmm=replace(SETTINGS.gmm, random_state=1)))
    ]
    assert np.array_equal(layers[0].scores, layers[1].scores)
    assert np.array_equal(layers[0].mean_activation, layers[1].mean_activation)
    assert not np.array_equal(layers[0].lower_bound, layers[1].lower_bound)


def test_an_interrupted_fit_loses_the_block_in_hand_alone(store, tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "BYTES_PER_BLOCK", 50_000)
    fit_maps, finished = fitting.fit_maps, []

    def interrupted(*arguments):
        if len(finished) == 4:
            raise KeyboardInterrupt
        finished.append(arguments[1:4])
        return fit_maps(*arguments)

    monkeypatch.setattr(fitting, "fit_maps", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fitting.fit_store(store, tmp_path, batch_samples=N, settings=SETTINGS)
    assert len(list(tmp_path.rglob("*.npz"))) == 4
    assert not list(tmp_path.rglob("*.partial"))
    again = []
    monkeypatch.setattr(fitting, "fit_maps", lambda *a: again.append(a[1:4]) or fit_maps(*a))
    resumed = fitting.fit_store(store, tmp_path, batch_samples=N, settings=SETTINGS)
    assert not {str(block) for block in finished} & {str(block) for block in again}
    assert all_equal(resumed, fitting.fit_store(store, tmp_path / "whole", batch_samples=N, settings=SETTINGS))


def test_samples_that_are_no_whole_number_of_batches(store, tmp_path):
    with pytest.raises(ConfigurationError, match=r"probe\.samples=50: the store has 120 samples; expected a divisor"):
        fitting.fit_store(store, tmp_path, batch_samples=50, settings=SETTINGS)


def test_streams_are_named_by_layer_filter_and_batch_alone():
    keys = {fitting.stream_key(layer, f, b) for layer in ("a", "a.b") for f in range(50) for b in range(10)}
    assert len(keys) == 1000
    assert fitting.stream_key("conv1", 3, 7) == 2722129620555639269
