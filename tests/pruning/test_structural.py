"""Removed and masked networks compute the same; what cannot be cut out is silenced, and said to be."""

import sys

import pytest
import torch
from conftest import build_for
from torch import nn

import gmmcnn
from gmmcnn.errors import EngineError, ModelError
from gmmcnn.pruning.structural import remove_filters


def unsettle(model: nn.Module) -> nn.Module:
    """Biases, shifts and running statistics away from their first values, so that a forgotten one shows."""
    torch.manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                module.bias.normal_(0, 0.3)
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.5)
                module.running_mean.normal_(0, 0.5)
                module.running_var.uniform_(0.5, 2)
    return model


def every_third(model: nn.Module) -> dict[str, list[int]]:
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    return {name: list(range(0, module.out_channels, 3)) for name, module in layers.items()}


@pytest.mark.parametrize("name", ["simple_cnn", "lenet5", "alexnet", "resnet8", "resnet20"])
def test_removed_and_masked_networks_agree_in_their_logits(digits, name):
    model = unsettle(build_for(name, digits)).eval()
    images = digits.validation.images[:40]
    mask = every_third(model)
    removal = remove_filters(model, mask, images[:1])
    with torch.no_grad(), gmmcnn.masked(model, mask):
        expected = model(images)
    with torch.no_grad():
        logits, unmasked = removal.model(images), model(images)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert (unmasked - expected).abs().max() > 0.01  # the mask did something
    assert removal.removed | removal.silenced == mask
    for layer, filters in removal.removed.items():
        before, after = (m.get_submodule(layer).out_channels for m in (model, removal.model))
        assert after == before - len(filters)


def test_plain_networks_lose_every_masked_filter(digits):
    model = build_for("simple_cnn", digits)
    removal = remove_filters(model, every_third(model), digits.validation.images[:1])
    assert removal.silenced == {}
    sizes = [sum(p.numel() for p in m.parameters()) for m in (removal.model, model)]
    assert sizes[0] < 0.6 * sizes[1]


def test_filters_that_write_to_a_residual_stream_are_silenced(digits):
    model = build_for("resnet8", digits)
    removal = remove_filters(model, every_third(model), digits.validation.images[:1])
    assert set(removal.removed) == {f"stage{n}.0.conv1" for n in (1, 2, 3)}
    assert set(removal.silenced) == {"conv1"} | {f"stage{n}.0.conv2" for n in (1, 2, 3)}


def test_a_layer_that_would_be_left_without_a_filter_is_silenced(digits):
    model = unsettle(build_for("lenet5", digits)).eval()
    images = digits.validation.images[:5]
    removal = remove_filters(model, {"conv1": range(6)}, images[:1])
    assert removal.silenced == {"conv1": list(range(6))}
    with torch.no_grad(), gmmcnn.masked(model, {"conv1": range(6)}):
        torch.testing.assert_close(removal.model(images), model(images), rtol=1e-5, atol=1e-5)


def test_the_network_given_is_untouched_and_the_smaller_one_can_be_trained(digits):
    model = build_for("resnet8", digits).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    removal = remove_filters(model, {"stage1.0.conv1": [0, 2]}, digits.validation.images[:1])
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    removal.model.train()(digits.train.images[:4]).sum().backward()
    assert all(p.grad is not None for p in removal.model.parameters())


def test_an_empty_mask_removes_nothing(digits):
    model = build_for("lenet5", digits).eval()
    removal = remove_filters(model, {"conv1": []}, digits.validation.images[:1])
    assert (removal.removed, removal.silenced) == ({}, {})


class AddedToItsInput(nn.Module):
    """The channels meet the image's own: no other layer writes to them, and still they cannot go."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.conv, self.activation, self.head = nn.Conv2d(3, 3, 3, padding=1), activation, nn.Linear(3, 2)

    def forward(self, images):
        return self.head((images + self.activation(self.conv(images))).mean(dim=(2, 3)))


def test_channels_added_to_the_image_are_silenced():
    model = AddedToItsInput(nn.ReLU()).eval()
    image = torch.randn(1, 3, 6, 6)
    removal = remove_filters(model, {"conv": [1]}, image)
    assert removal.silenced == {"conv": [1]}
    with torch.no_grad(), gmmcnn.masked(model, {"conv": [1]}):
        torch.testing.assert_close(removal.model(image), model(image))


def test_what_can_neither_go_nor_be_silenced_is_refused():
    """sigmoid(0) is not 0."""
    with pytest.raises(ModelError, match="conv: logits differ from the masked network's"):
        remove_filters(AddedToItsInput(nn.Sigmoid()), {"conv": [1]}, torch.randn(1, 3, 6, 6))


@pytest.mark.parametrize(("mask", "message"), [({"conv9": [0]}, "conv9"), ({"conv1": [6]}, "no filter 6")])
def test_a_mask_of_another_network_is_refused(digits, mask, message):
    with pytest.raises(ModelError, match=message):
        remove_filters(build_for("lenet5", digits), mask, digits.validation.images[:1])


def test_without_torch_pruning_the_error_says_what_to_install(digits, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(EngineError, match=r"pip install 'gmmcnn\[prune\]'"):
        remove_filters(build_for("lenet5", digits), {"conv1": [0]}, digits.validation.images[:1])
