"""Networks without shortcuts: their layers, sizes and ways of writing an activation."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gmmcnn.models.plain import AlexNet, LeNet5, SimpleCNN


def convolutions(model: nn.Module) -> list[nn.Conv2d]:
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]


def test_simple_cnn_halves_its_maps_three_times() -> None:
    model = SimpleCNN(3, (24, 40), 7, widths=(2, 3, 5))
    assert [(c.in_channels, c.out_channels, c.kernel_size) for c in convolutions(model)] == [
        (3, 2, (3, 3)), (2, 3, (3, 3)), (3, 5, (3, 3)),
    ]  # fmt: skip
    assert model.features(torch.rand(2, 3, 24, 40)).shape == (2, 5, 3, 5)
    assert model.classifier.in_features == 5 * 3 * 5
    assert model(torch.rand(2, 3, 24, 40)).shape == (2, 7)


def test_simple_cnn_is_its_layers_one_after_the_other() -> None:
    torch.manual_seed(0)
    model, x = SimpleCNN(1, (16, 16), 4), torch.rand(3, 1, 16, 16)
    maps = x
    for convolution in convolutions(model):
        maps = F.max_pool2d(convolution(maps).clamp(min=0), 2)
    torch.testing.assert_close(model(x), maps.flatten(1) @ model.classifier.weight.T + model.classifier.bias)


@pytest.mark.parametrize(
    ("image_size", "paddings", "first", "second"),
    [
        ((32, 32), (0, 0), (28, 28), (10, 10)),  # as published
        ((28, 28), (2, 0), (28, 28), (10, 10)),  # padded to the same maps
        ((31, 40), (2, 0), (31, 40), (11, 16)),  # the smaller side decides
        ((13, 13), (2, 0), (13, 13), (2, 2)),  # six pixels are left to the second convolution
        ((11, 11), (2, 2), (11, 11), (5, 5)),  # five would leave nothing to pool
        ((4, 4), (2, 2), (4, 4), (2, 2)),
    ],
)  # fmt: skip
def test_lenet_pads_small_images_so_that_there_is_something_to_pool(image_size, paddings, first, second) -> None:
    model = LeNet5(1, image_size, 10)
    assert [c.padding for c in convolutions(model)] == [(p, p) for p in paddings]
    shapes = []
    for convolution in convolutions(model):
        convolution.register_forward_hook(lambda _m, _i, out: shapes.append(tuple(out.shape[2:])))
    assert model(torch.rand(2, 1, *image_size)).shape == (2, 10)
    assert shapes == [first, second]


def test_lenet_is_the_published_network() -> None:
    torch.manual_seed(0)
    model, x = LeNet5(1, (32, 32), 10), torch.rand(2, 1, 32, 32)
    assert [c.out_channels for c in convolutions(model)] == [6, 16]
    assert [module.out_features for module in (model.fc1, model.fc2, model.fc3)] == [120, 84, 10]
    maps = F.max_pool2d(F.relu(model.conv2(F.max_pool2d(F.relu(model.conv1(x)), 2))), 2)
    expected = model.fc3(F.relu(model.fc2(F.relu(model.fc1(maps.reshape(2, -1))))))
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize(("image_size", "stride", "n_inputs"), [((15, 64), 1, 8), ((16, 16), 2, 1), ((32, 48), 2, 6)])
def test_alexnet_strides_over_larger_images(image_size, stride, n_inputs) -> None:
    model = AlexNet(3, image_size, 10, hidden=8).eval()
    assert convolutions(model)[0].stride == (stride, stride)
    assert [module.in_features for module in model.modules() if isinstance(module, nn.Linear)] == [
        256 * n_inputs, 8, 8,
    ]  # fmt: skip
    assert model(torch.rand(1, 3, *image_size)).shape == (1, 10)


def test_alexnet_has_the_publications_filters_and_activations_in_place() -> None:
    model = AlexNet(3, (32, 32), 10, hidden=8, dropout=0.25)
    assert [c.out_channels for c in convolutions(model)] == [64, 192, 384, 256, 256]
    assert {(c.kernel_size, c.padding) for c in convolutions(model)} == {((3, 3), (1, 1))}
    assert all(module.inplace for module in model.modules() if isinstance(module, nn.ReLU))
    assert [module.p for module in model.modules() if isinstance(module, nn.Dropout)] == [0.25, 0.25]


def test_alexnets_signal_survives_its_depth() -> None:
    """He's draw keeps the second moment of what goes through; torch's own would leave hardly anything of it."""
    torch.manual_seed(0)
    model, x = AlexNet(3, (32, 32), 10, hidden=64).eval(), torch.randn(64, 3, 32, 32)
    with torch.no_grad():
        logits = model(x)
    assert 0.3 < logits.square().mean().sqrt() < 10
    assert all(not module.bias.any() for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear))


@pytest.mark.parametrize("network", [SimpleCNN, LeNet5, AlexNet])
def test_the_smallest_image_goes_through(network) -> None:
    assert network(1, network.smallest_image, 3).eval()(torch.rand(1, 1, *network.smallest_image)).shape == (1, 3)
