"""Maps in memory are those of a store."""

import numpy as np
import pytest
import torch
from torch import nn

from gmmcnn.errors import CaptureError
from gmmcnn.featuremaps import extract, find_taps
from gmmcnn.featuremaps.stream import feature_maps


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_maps_in_memory_are_those_of_a_store(digits_cnn, digits, tmp_path, dtype):
    images = digits.train.images[:50]
    how = {"dtype": dtype, "forward_samples": 7, "probe_samples": 25}
    taps = find_taps(digits_cnn, images[:1])
    done = []
    maps = feature_maps(digits_cnn, images, taps, **how, advance=done.append)
    store = extract(digits_cnn, images, tmp_path / "maps.zarr", **how)
    assert (maps.layers, maps.n_samples, sum(done)) == (store.layers, 50, 50)
    for layer in store.layers:
        assert np.array_equal(maps.read(layer), store.read(layer))
        part = (slice(2, 5), slice(25, 50))
        assert np.array_equal(maps.read(layer, *part), store.read(layer, *part))
        assert maps.read(layer, *part).flags.c_contiguous


def test_values_that_do_not_fit_are_named():
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.ReLU())
    with torch.no_grad():
        model[0].weight[:] = torch.tensor([1.0, 1e6]).reshape(2, 1, 1, 1)
    images = torch.zeros(5, 1, 3, 3)
    images[3] = 1
    taps = find_taps(model, images[:1])
    with pytest.raises(CaptureError, match=r"layer '0', filter 1, sample 3: the feature map does not fit into float16"):
        feature_maps(model, images, taps, dtype="float16", forward_samples=2)
    assert feature_maps(model, images, taps).read("0").max() == 1e6
