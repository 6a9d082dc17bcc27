"""A network that is run now is fitted as its store is, bit by bit, however its maps are grouped or interrupted."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

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


# ---------------------------------------------------------------------------------------------------------- on a device


class OnDevice(Tensor):
    """A tensor that says it lies on a device, as all that is made of it, and lists what leaves from there."""

    left: ClassVar[list[tuple[str, int]]] = []

    @property
    def __cuda_array_interface__(self) -> dict[str, int]:
        return {"version": 3}

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name, given = func.__name__, [*args[1:], *(kwargs or {}).values()]
        elsewhere = name == "to" and any(isinstance(value, str | torch.device) for value in given)
        if elsewhere or name in ("cpu", "numpy", "tolist", "__array__"):
            cls.left.append((name, args[0].numel()))
        if name == "copy_" and not isinstance(args[0], cls):
            cls.left.append((name, args[1].numel()))
        return super().__torch_function__(func, types, args, kwargs or {})


class Lifted(nn.Module):
    """A network that computes on that device."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images.as_subclass(OnDevice))


@pytest.fixture
def lifted(fibers: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[nn.Module, Tensor]:
    """A small network on that device, whose kernels are emulated, and images in host memory."""
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: type("Stream", (), {"cuda_stream": 0}))
    monkeypatch.setattr(OnDevice, "left", [])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.ReLU())
    return Lifted(model), torch.rand(N * 2, 1, 8, 8)


ON_DEVICE = replace(SETTINGS, engine=config.Engine("cuda"), gmm=config.Gmm(k_max=2, repeats=1, max_iter=20))


def test_no_map_leaves_the_device_on_its_way_to_the_fits(lifted, tmp_path):
    model, images = lifted
    taps = find_taps(model, images[:1])
    OnDevice.left.clear()
    fits = live.fit_live(lean(model, images, taps, 1 << 30), None, n_samples=N, settings=ON_DEVICE)
    assert OnDevice.left == []
    store = extract(model, images, tmp_path / "stored.zarr", forward_samples=5, probe_samples=N)
    assert ("to", 4 * 3 * 36) in OnDevice.left  # what is stored leaves it, and what the CPU fits
    OnDevice.left.clear()
    on_cpu = replace(SETTINGS, engine=config.Engine("cpu"))
    live.fit_live(lean(model, images, taps, 1 << 30), None, n_samples=N, settings=on_cpu)
    assert ("cpu", 2 * N * 3 * 36) in OnDevice.left
    assert same(fits, fitting.fit_store(store, tmp_path / "stored", n_samples=N, settings=ON_DEVICE))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", NETWORKS)
def test_on_a_gpu_live_and_stored_fits_are_the_same(name, tmp_path):
    torch.manual_seed(0)
    model = BUILT_IN[name](in_channels=3, image_size=(32, 32), n_classes=10).eval().cuda()
    images, settings = torch.rand(N * B, 3, 32, 32), replace(SETTINGS, engine=config.Engine("cuda"))
    taps = find_taps(model, images[:1])
    store = extract(model, images, tmp_path / "stored.zarr", forward_samples=5, probe_samples=N)
    stored = fitting.fit_store(store, tmp_path / "stored", n_samples=N, settings=settings)
    keep = store_for(
        model, Samples(images, "images"), taps, tmp_path / "kept.zarr", dtype="float32", forward_samples=5,
        probe_samples=N,
    )  # fmt: skip
    whole = lean(model, images, taps, 1 << 30, keep=keep)
    assert same(stored, live.fit_live(whole, tmp_path / "live", n_samples=N, settings=settings))
    kept = ActivationStore.open(tmp_path / "kept.zarr")
    assert all(np.array_equal(kept.read(layer), store.read(layer)) for layer in store.layers)
    grouped = lean(model, images, taps, 1 << 20)
    assert same(stored, live.fit_live(grouped, None, n_samples=N, settings=settings))
    on_cpu = live.fit_live(whole, None, n_samples=N, settings=replace(SETTINGS, engine=config.Engine("cpu")))
    for layer, fits in stored.layers.items():
        np.testing.assert_allclose(fits.mean_activation, on_cpu.layers[layer].mean_activation, rtol=1e-12)
        np.testing.assert_array_equal(fits.active_share, on_cpu.layers[layer].active_share)
