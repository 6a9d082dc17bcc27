"""Maps made when asked for are those of a store, in whatever groups, rounds and passes they are made."""

import numpy as np
import pytest
import torch
from torch import nn

from gmmcnn import config
from gmmcnn.errors import CaptureError, ConfigurationError
from gmmcnn.featuremaps import extract, find_taps
from gmmcnn.featuremaps.live import LiveMaps


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("forward_samples", "n_bytes"), [(7, 1), (1, 70_000), (256, 200_000), (4, 1 << 30)])
def test_live_maps_are_those_of_a_store(digits_cnn, digits, tmp_path, dtype, forward_samples, n_bytes):
    """Batches of 25 in passes of 7: some passes have samples of two batches."""
    images, settings = digits.train.images[:50], config.Extract(dtype=dtype, forward_samples=forward_samples)
    store = extract(
        digits_cnn, images, tmp_path / "maps.zarr", dtype=dtype, forward_samples=forward_samples, probe_samples=25
    )
    maps = LiveMaps(digits_cnn, images, find_taps(digits_cnn, images[:1]), 25, settings)
    maps._bytes = n_bytes
    seen = {layer: np.zeros((tap.n_filters, 2), int) for layer, tap in maps.layers.items()}
    done = []
    for part in maps.take(maps.rounds, done.append):
        filters = slice(part.filters.start, part.filters.stop)
        of_store = store.read(part.layer, filters, slice(part.batches.start * 25, part.batches.stop * 25))
        np.testing.assert_array_equal(part.maps.numpy(), of_store, strict=True)
        assert part.maps.numel() * 4 <= n_bytes or len(part.filters) == 1
        seen[part.layer][filters, part.batches.start : part.batches.stop] += 1
    assert all((count == 1).all() for count in seen.values())
    assert sum(done) == 2


def test_all_groups_use_the_same_memory(digits_cnn, digits):
    images = digits.train.images[:60]
    maps = LiveMaps(digits_cnn, images, find_taps(digits_cnn, images[:1]), 20, config.Extract())
    maps._bytes = 58_000
    assert len(maps._groups(20)) > 2
    taken = list(maps.take(maps.rounds))  # whose maps are all held
    memory = {part.maps.untyped_storage().data_ptr() for part in taken}
    assert len(memory) == 1
    assert taken[0].maps.untyped_storage().nbytes() <= 100_000


def test_values_that_do_not_fit_are_named():
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.ReLU())
    with torch.no_grad():
        model[0].weight[:] = torch.tensor([1.0, 1e6]).reshape(2, 1, 1, 1)
    images = torch.zeros(6, 1, 3, 3)
    images[3] = 1
    taps = find_taps(model, images[:1])
    settings = config.Extract(dtype="float16", forward_samples=2)
    maps = LiveMaps(model, images, taps, 6, settings)
    maps._bytes = 1  # each filter alone
    with pytest.raises(CaptureError, match=r"layer '0', filter 1, sample 3: the feature map does not fit into float16"):
        list(maps.take(maps.rounds))


def test_images_that_are_no_whole_number_of_batches():
    model, images = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU()), torch.zeros(7, 1, 3, 3)
    with pytest.raises(ConfigurationError, match=r"probe\.samples=3: there are 7 samples; expected a divisor"):
        LiveMaps(model, images, find_taps(model, images[:1]), 3, config.Extract())
