"""Fits of a store: kept, reused, resumed, and the same wherever blocks begin."""

import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as search
from hypothesis import strategies as st

from gmmcnn import config
from gmmcnn.errors import ConfigurationError, StoreError
from gmmcnn.featuremaps import ActivationStore, Tap, extract, import_activations
from gmmcnn.filters import fitting
from gmmcnn.filters.fits import Fits, LayerFits

N = 40
SETTINGS = config.Settings(gmm=config.Gmm(k_max=4, n_init=2, repeats=1))


@pytest.fixture(scope="module")
def store(_digits_cnn, digits, tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "maps.zarr"
    return extract(_digits_cnn[0], digits.train.images[: 3 * N], path, probe_samples=N)


def equal(one: LayerFits, other: LayerFits) -> bool:
    def same(a, b):
        return np.array_equal(a, b, equal_nan=a.dtype.kind == "f")

    return all(same(getattr(one, f.name), getattr(other, f.name)) for f in fields(LayerFits))


def all_equal(one, other) -> bool:
    return one.layers.keys() == other.layers.keys() and all(equal(one.layers[k], other.layers[k]) for k in one.layers)


def test_every_filter_of_every_batch_is_fitted(store, tmp_path):
    done = []
    fits = fitting.fit_store(store, tmp_path, n_samples=N, settings=SETTINGS, advance=done.append)
    assert {layer: len(fit) for layer, fit in fits.layers.items()} == {k: t.n_filters for k, t in store.layers.items()}
    assert (fits.n_batches, fits.n_samples, fits.n_filters) == (3, N, 112)
    assert sum(done) == fitting.n_fits(store, N) == 336
    for layer in fits.layers.values():
        assert layer.scores.shape[1:] == (3, N, 2)
        chosen = layer.n_components > 0
        assert (layer.labels[chosen].max(axis=-1) < layer.n_components[chosen]).all()
        assert np.isfinite(layer.scores).all()


@pytest.fixture(scope="module")
def activations() -> np.ndarray:
    """Maps (60 samples, 5 filters, 4, 5), some of them dead, as the same numbers for every store made of them."""
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(60, 5, 4, 5)) + 3 * rng.integers(3, size=(60, 5, 1, 1))
    maps[:, 2] = 0
    return np.maximum(maps, 0).astype(np.float32)


def fit_cut(activations, folder: Path, block_samples: int, bytes_per_block: int, threads: int) -> Fits:
    """Fits of three probe batches from a store with shards of so many samples."""
    path = folder / f"{block_samples}.zarr"
    np.save(folder / "maps.npy", activations)
    if not path.exists():
        import_activations(folder / "maps.npy", path, probe_samples=block_samples)
    store = ActivationStore.open(path)
    fits = folder / f"fits-{block_samples}-{bytes_per_block}-{threads}"
    settings = replace(SETTINGS, engine=config.Engine(threads=threads))
    with mock.patch.object(fitting, "BYTES_PER_BLOCK", bytes_per_block):
        return fitting.fit_store(store, fits, n_samples=20, settings=settings)


@search(max_examples=12)
@given(block_samples=st.integers(1, 60), bytes_per_block=st.integers(1, 30_000), threads=st.integers(1, 3))
def test_no_result_depends_on_shards_blocks_or_threads(
    activations, tmp_path_factory, block_samples, bytes_per_block, threads
):
    """One filter of one batch has 1,600 bytes, the whole store 24,000."""
    folder = tmp_path_factory.mktemp("cut")
    whole = fit_cut(activations, folder, 60, 2**20, 1)
    assert all_equal(whole, fit_cut(activations, folder, block_samples, bytes_per_block, threads))
    assert {str(status) for status in whole.layers["imported"].status.ravel()} == {"ok", "dead"}


@pytest.mark.parametrize(("bytes_per_block", "threads"), [(1, 1), (20_000, 3)])
def test_no_result_of_a_network_depends_on_blocks_or_threads(store, tmp_path, monkeypatch, bytes_per_block, threads):
    whole = fitting.fit_store(store, tmp_path / "whole", n_samples=N, settings=SETTINGS)
    monkeypatch.setattr(fitting, "BYTES_PER_BLOCK", bytes_per_block)
    settings = replace(SETTINGS, engine=config.Engine(threads=threads))
    parts = fitting.fit_store(store, tmp_path / "parts", n_samples=N, settings=settings)
    assert len(list((tmp_path / "parts").rglob("*.npz"))) > len(list((tmp_path / "whole").rglob("*.npz")))
    assert all_equal(whole, parts)


def test_what_is_fitted_is_read_and_other_settings_are_fitted_beside_it(store, tmp_path, monkeypatch):
    first = fitting.fit_store(store, tmp_path, n_samples=N, settings=SETTINGS)
    other = replace(SETTINGS, gmm=config.Gmm(k_max=3, repeats=1))
    assert fitting.load_fits(tmp_path, list(store.layers), N, other) is None
    fitting.fit_store(store, tmp_path, n_samples=N, settings=other)
    monkeypatch.setattr(fitting, "fit_maps", None)
    assert all_equal(first, fitting.fit_store(store, tmp_path, n_samples=N, settings=SETTINGS))
    loaded = fitting.load_fits(tmp_path, list(store.layers), N, SETTINGS)
    assert loaded is not None
    assert all_equal(first, loaded)


def test_fits_of_one_engine_serve_all_and_say_which_it_was(store, tmp_path, monkeypatch):
    made_by_cpu = replace(SETTINGS, engine=config.Engine(name="cpu"))
    first = fitting.fit_store(store, tmp_path, n_samples=N, settings=made_by_cpu)
    monkeypatch.setattr(fitting, "fit_maps", None)
    other = replace(SETTINGS, engine=config.Engine(name="reference"))
    assert all_equal(first, fitting.fit_store(store, tmp_path, n_samples=N, settings=other))
    parts = fitting.find_fits(tmp_path, list(store.layers), N, other)
    assert parts is not None
    assert fitting.engines_of(parts) == ["cpu"]


def test_fits_of_an_earlier_version_are_found_whichever_engine_made_them(store, tmp_path):
    first = fitting.fit_store(store, tmp_path, n_samples=N, settings=SETTINGS)
    (found,) = tmp_path.iterdir()
    for earlier in fitting._earlier_keys(SETTINGS, N):
        found = found.rename(tmp_path / earlier)
        loaded = fitting.load_fits(tmp_path, list(store.layers), N, SETTINGS)
        assert loaded is not None
        assert all_equal(first, loaded)


def test_other_starts_for_the_same_maps(store, tmp_path):
    """Only the mixtures may differ: scores and activations do not depend on where EM starts."""
    layers = [
        fitting.fit_store(store, tmp_path, n_samples=N, settings=settings).layers["features.conv1"]
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
        fitting.fit_store(store, tmp_path, n_samples=N, settings=SETTINGS)
    assert len(list(tmp_path.rglob("*.npz"))) == 4
    assert not list(tmp_path.rglob("*.partial"))
    again, filters_read, done = [], [], []
    read = store.read
    monkeypatch.setattr(fitting, "fit_maps", lambda *a: again.append(a[1:4]) or fit_maps(*a))
    monkeypatch.setattr(store, "read", lambda *a: filters_read.append(a[1]) or read(*a))
    resumed = fitting.fit_store(store, tmp_path, n_samples=N, settings=SETTINGS, advance=done.append)
    assert not {str(block) for block in finished} & {str(block) for block in again}
    assert len(filters_read) == len(again)  # what is fitted already is not read either
    assert sum(done) == fitting.n_fits(store, N)
    assert all_equal(resumed, fitting.fit_store(store, tmp_path / "whole", n_samples=N, settings=SETTINGS))


def test_a_lost_part_is_missed_and_fitted_again_alone(store, tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "BYTES_PER_BLOCK", 50_000)
    whole = fitting.fit_store(store, tmp_path, n_samples=N, settings=SETTINGS)
    lost = sorted(tmp_path.rglob("*.npz"))[0]
    lost.unlink()
    assert fitting.load_fits(tmp_path, list(store.layers), N, SETTINGS) is None
    fit_maps, again = fitting.fit_maps, []
    monkeypatch.setattr(fitting, "fit_maps", lambda *a: again.append(a[1:4]) or fit_maps(*a))
    assert all_equal(whole, fitting.fit_store(store, tmp_path, n_samples=N, settings=SETTINGS))
    assert len(again) == 1
    assert lost.exists()


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_without_a_record_of_the_parts_they_are_looked_for(store, tmp_path, monkeypatch, content):
    whole = fitting.fit_store(store, tmp_path, n_samples=N, settings=SETTINGS)
    next(tmp_path.rglob("complete.json")).write_text(content)
    assert fitting.load_fits(tmp_path, list(store.layers), N, SETTINGS) is None
    monkeypatch.setattr(fitting, "fit_maps", None)
    fitting.fit_store(store, tmp_path, n_samples=N, settings=SETTINGS)
    assert all_equal(whole, fitting.load_fits(tmp_path, list(store.layers), N, SETTINGS))


@pytest.mark.parametrize("kept_bytes", [0, 1000, -10])
def test_a_damaged_part_is_named(store, tmp_path, kept_bytes):
    fitting.fit_store(store, tmp_path, n_samples=N, settings=SETTINGS)
    part = next(tmp_path.rglob("*.npz"))
    part.write_bytes(part.read_bytes()[:kept_bytes])
    with pytest.raises(StoreError, match=rf"{part.name}: damaged .*; fit again: gmmcnn task=fit"):
        fitting.load_fits(tmp_path, list(store.layers), N, SETTINGS)


def cheap_store(path: Path, n_filters: int) -> ActivationStore:
    """200 samples of 56 x 56 pixels, which compress well: 2.5 MB a filter."""
    tap = Tap("conv", n_filters, 56, 56, "imported")
    store = ActivationStore.create(path, [tap], 200, block_samples=25)
    few = np.random.default_rng(0).integers(0, 4, (5, 25, 56, 56)).astype(np.float32)
    maps = np.tile(few, (n_filters // len(few), 1, 1, 1))
    for block in range(store.n_blocks):
        store.write("conv", block, maps)
        store.commit(block)
    return store


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell a process's peak memory")
def test_memory_does_not_grow_with_the_store(tmp_path):
    """Stores of 0.2 and of 0.8 GB are fitted in less than 1 GiB, and the larger one in hardly more than the other."""
    program = (
        "import sys; from pathlib import Path; from gmmcnn import config\n"
        "from gmmcnn.filters import fitting\n"
        "from gmmcnn.featuremaps import ActivationStore\n"
        "settings = config.Settings(gmm=config.Gmm(k_max=2, repeats=1))\n"
        "store, fits = ActivationStore.open(sys.argv[1]), Path(sys.argv[1]) / 'fits'\n"
        "print(len(fitting.fit_store(store, fits, n_samples=200, settings=settings).layers['conv']))\n"
        "[peak] = [line for line in Path('/proc/self/status').read_text().splitlines() if 'VmHWM' in line]\n"
        "print(peak.split()[1])"
    )
    peaks = {}
    for n_filters in (80, 320):
        store = cheap_store(tmp_path / f"{n_filters}.zarr", n_filters)
        run = subprocess.run([sys.executable, "-c", program, store.path], capture_output=True, text=True, check=True)
        fitted, kilobytes = map(int, run.stdout.split())
        assert fitted == n_filters
        peaks[store.nbytes] = kilobytes * 1024
    (small, small_peak), (large, large_peak) = sorted(peaks.items())
    assert small > 2 * fitting.BYTES_PER_BLOCK  # the small one too has a block in hand, one being read, and more
    assert large == 4 * small
    assert large_peak < 2**30
    assert large_peak - small_peak < (large - small) / 4


def test_samples_that_are_no_whole_number_of_batches(store, tmp_path):
    with pytest.raises(ConfigurationError, match=r"probe\.samples=50: the store has 120 samples; expected a divisor"):
        fitting.fit_store(store, tmp_path, n_samples=50, settings=SETTINGS)


def test_streams_are_named_by_layer_filter_and_batch_alone():
    keys = {fitting.stream_key(layer, f, b) for layer in ("a", "a.b") for f in range(50) for b in range(10)}
    assert len(keys) == 1000
    assert fitting.stream_key("conv1", 3, 7) == 2722129620555639269
