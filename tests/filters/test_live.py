"""A network that is run now is fitted as its store is, bit by bit, however its maps are grouped or interrupted."""

from dataclasses import fields

import numpy as np
import pytest
import torch

from gmmcnn import config
from gmmcnn.data.samples import Samples
from gmmcnn.featuremaps import ActivationStore, extract, find_taps
from gmmcnn.featuremaps.live import LiveMaps
from gmmcnn.featuremaps.stream import store_for
from gmmcnn.filters import fitting, live
from gmmcnn.filters.fits import Fits, LayerFits
from gmmcnn.models.building import BUILT_IN

N, B = 12, 3
SETTINGS = config.Settings(gmm=config.Gmm(k_max=3, repeats=2), extract=config.Extract(forward_samples=5))
NETWORKS = ("simple_cnn", "lenet5", "alexnet", "resnet8", "resnet20")


def same(one: Fits, other: Fits) -> bool:
    def equal(a, b):
        return np.array_equal(a, b, equal_nan=a.dtype.kind == "f") and a.dtype == b.dtype

    return (list(one.layers), one.tapped) == (list(other.layers), other.tapped) and all(
        equal(getattr(one.layers[layer], f.name), getattr(other.layers[layer], f.name))
        for layer in one.layers
        for f in fields(LayerFits)
    )


def made(name: str, tmp_path):
    """A network, its images and taps, and the fits of its store."""
    torch.manual_seed(0)
    model = BUILT_IN[name](in_channels=3, image_size=(32, 32), n_classes=10).eval()
    images = torch.rand(N * B, 3, 32, 32)
    store = extract(model, images, tmp_path / "stored.zarr", forward_samples=5, probe_samples=N)
    fits = fitting.fit_store(store, tmp_path / "stored", n_samples=N, settings=SETTINGS)
    return model, images, find_taps(model, images[:1]), fits


def lean(model, images, taps, n_bytes: int, **more) -> LiveMaps:
    """Live maps that hold so many bytes at once."""
    maps = LiveMaps(model, images, taps, N, SETTINGS.extract, **more)
    maps._bytes = n_bytes
    return maps


@pytest.mark.parametrize("name", NETWORKS)
def test_live_and_stored_fits_are_the_same_however_maps_are_grouped(name, tmp_path, monkeypatch):
    model, images, taps, stored = made(name, tmp_path)
    whole = lean(model, images, taps, 1 << 30)
    assert whole.rounds == [range(B)]
    assert same(stored, live.fit_live(whole, None, n_samples=N, settings=SETTINGS))
    monkeypatch.setattr(live, "PROBLEMS_PER_SWEEP", 50)
    largest = max(tap.n_filters * tap.height * tap.width for tap in taps.analysed) * N * 4
    grouped = lean(model, images, taps, largest * 2 // 3)
    assert len(grouped.rounds) == B
    assert len(grouped._groups(N)) > 1
    assert same(stored, live.fit_live(grouped, tmp_path / "live", n_samples=N, settings=SETTINGS))


@pytest.mark.parametrize("dies_after", [0, 1, 4, 7])
def test_an_interruption_changes_no_bit_of_fits_or_of_the_store_that_is_kept(tmp_path, monkeypatch, dies_after):
    model, images, taps, stored = made("lenet5", tmp_path)
    reduce_maps, calls = live.reduce_maps, []

    def attempt(*, until):
        def counted(*given):
            calls.append(given[1])
            if len(calls) > until:
                raise KeyboardInterrupt
            return reduce_maps(*given)

        monkeypatch.setattr(live, "reduce_maps", counted)
        calls.clear()
        keep = store_for(
            model, Samples(images, "images"), taps, tmp_path / "kept.zarr", dtype="float32", forward_samples=5,
            probe_samples=N,
        )  # fmt: skip
        maps = lean(model, images, taps, 1 << 17, keep=keep)
        return live.fit_live(maps, tmp_path / "live", n_samples=N, settings=SETTINGS)

    with pytest.raises(KeyboardInterrupt):
        attempt(until=dies_after)
    assert same(stored, attempt(until=10_000))
    kept, other = (ActivationStore.open(tmp_path / name) for name in ("kept.zarr", "stored.zarr"))
    assert kept.verify() == []
    files = [path.relative_to(kept.path) for path in sorted(kept.path.rglob("*")) if path.is_file()]
    assert files == [path.relative_to(other.path) for path in sorted(other.path.rglob("*")) if path.is_file()]
    assert all((kept.path / file).read_bytes() == (other.path / file).read_bytes() for file in files)
    assert not list((tmp_path / "live").glob("*.scores"))
