"""Records of where maps are taken: frozen, equal by content, and kept whole by a store's description."""

from dataclasses import FrozenInstanceError, asdict

import pytest
import torch
from torch import nn

from gmmcnn.featuremaps import find_taps
from gmmcnn.featuremaps.taps import Skipped, Tap, Tapped, Taps

TAP = Tap("features.conv1", 4, 7, 5, "after relu")


def test_the_shape_is_filters_rows_columns() -> None:
    assert TAP.shape == (4, 7, 5)


@pytest.mark.parametrize(
    ("height", "width", "size", "shape", "one_pixel"),
    [
        (7, 5, "", "7x5", False),
        (1, 1, "", "1x1", True),
        (1, 11, "", "1x11", False),
        (1, 1, "1", "1", True),
        (1, 100, "100", "100", False),
        (32, 8, "4 × 8 × 8", "4x8x8", False),
        (1, 1, "1 × 1 × 1", "1x1x1", True),
    ],
)
def test_a_tap_in_words(height: int, width: int, size: str, shape: str, one_pixel: bool) -> None:
    tap = Tap("conv", 4, height, width, "after relu", kind="Conv3d", size=size)
    assert tap.tapped == Tapped("after relu", "Conv3d", shape)
    assert tap.tapped.one_pixel is tap.one_pixel is one_pixel
    assert not Tapped("after relu").one_pixel  # of an earlier version: not known to be


def test_records_are_values() -> None:
    assert Tap(**asdict(TAP)) == TAP
    assert len({TAP, Tap(**asdict(TAP)), Skipped("a", "b"), Skipped("a", "b")}) == 2
    for record, name in ((TAP, "layer"), (Skipped("a", "b"), "reason"), (Taps("branch", (TAP,), (), 1), "tap")):
        with pytest.raises(FrozenInstanceError):
            setattr(record, name, "other")


def test_taps_of_a_network_have_the_shapes_that_its_layers_put_out() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, (3, 1)), nn.Flatten(), nn.LazyLinear(2))
    image = torch.rand(1, 1, 9, 12)
    model(image)
    taps = find_taps(model, image, tap="pre_activation")
    expected = {}
    x = image
    for name, module in model.named_children():
        x = module(x)
        if isinstance(module, nn.Conv2d):
            expected[name] = tuple(x.shape[1:])
    assert {tap.layer: tap.shape for tap in taps.analysed} == expected == {"0": (3, 7, 10), "2": (2, 5, 10)}
    assert taps.tap == "pre_activation"
    assert taps.skipped == ()
    assert taps.peak_bytes_per_sample >= 3 * 7 * 10 * 4
