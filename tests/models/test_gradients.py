"""Per-sample gradient norms against one backward pass a sample, and their independence of the grouping."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import build_for
from torch import nn

from gmmcnn.models.gradients import sample_gradients


def one_by_one(model: nn.Module, images, labels, layer: str) -> tuple[np.ndarray, np.ndarray]:
    """Norms over all parameters (S,), and over the weights and bias of each filter of a layer (S, C)."""
    model = copy.deepcopy(model).eval()
    convolution = model.get_submodule(layer)
    norms, filters = [], []
    for image, label in zip(images, labels, strict=True):
        model.zero_grad()
        F.cross_entropy(model(image[None]), label[None]).backward()
        norms.append(torch.cat([p.grad.flatten() for p in model.parameters()]).double().norm().item())
        own = convolution.weight.grad.flatten(1)
        if convolution.bias is not None:
            own = torch.cat([own, convolution.bias.grad[:, None]], dim=1)
        filters.append(own.double().norm(dim=1).numpy())
    return np.array(norms), np.array(filters)


@pytest.mark.parametrize(
    ("name", "layer"), [("simple_cnn", "features.conv2"), ("lenet5", "conv1"), ("resnet8", "stage2.0.conv1")]
)
def test_norms_are_those_of_one_backward_pass_a_sample(digits, name, layer):
    model = build_for(name, digits)
    images, labels = digits.train.images[:12], digits.train.labels[:12]
    found = sample_gradients(model, images, labels)
    norms, filters = one_by_one(model, images, labels, layer)
    np.testing.assert_allclose(found.norm, norms, rtol=1e-4)
    np.testing.assert_allclose(found.filters[layer], filters, rtol=1e-3, atol=1e-5 * norms.max())


def test_in_place_activations_are_no_obstacle(digits):
    model = build_for("alexnet", digits)
    found = sample_gradients(model, digits.train.images[:2], digits.train.labels[:2])
    norms, _ = one_by_one(model, digits.train.images[:2], digits.train.labels[:2], "features.conv1")
    np.testing.assert_allclose(found.norm, norms, rtol=1e-4)


def test_loss_and_error_are_the_networks(digits, digits_cnn):
    images, labels = digits.train.images[:50], digits.train.labels[:50]
    found = sample_gradients(digits_cnn, images, labels)
    with torch.no_grad():
        logits = digits_cnn.eval()(images).double()
    np.testing.assert_allclose(found.loss, F.cross_entropy(logits, labels, reduction="none"), rtol=1e-4, atol=1e-6)
    p = logits.softmax(dim=1)[range(50), labels]
    np.testing.assert_allclose(found.error, 1 - p, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.per_error, found.norm / found.error)


def test_groups_bound_the_memory_and_change_nothing(digits, digits_cnn, monkeypatch):
    images, labels = digits.train.images[:10], digits.train.labels[:10]
    sizes = []
    original = torch.func.vmap

    def counting(function):
        vectorised = original(function)

        def call(some, expected):
            sizes.append(len(some))
            return vectorised(some, expected)

        return call

    whole = sample_gradients(digits_cnn, images, labels)
    monkeypatch.setattr("gmmcnn.models.gradients.vmap", counting)
    gradient_bytes = 4 * sum(p.numel() for p in digits_cnn.parameters())
    grouped = sample_gradients(digits_cnn, images, labels, bytes_per_group=3 * gradient_bytes)
    assert sizes == [3, 3, 3, 1]
    np.testing.assert_allclose(grouped.norm, whole.norm, rtol=1e-4)


def test_a_sample_that_the_network_is_sure_of_keeps_its_gradient_per_error():
    """With logits 30 apart, 1 - p = 1e-13 is lost in float32; the ratio must not be."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Flatten())
    with torch.no_grad():
        model[0].weight[:] = torch.tensor([15.0, -15.0]).reshape(2, 1, 1, 1)
    found = sample_gradients(model, torch.ones(1, 1, 1, 1), torch.tensor([0]))
    assert found.error[0] == pytest.approx(np.exp(-30), rel=1e-3)
    assert found.per_error[0] == pytest.approx(np.sqrt(2), rel=1e-3)  # (p - 1, 1 - p) on two weights


def test_the_model_comes_back_as_it_was(digits):
    model = build_for("resnet8", digits).train()
    model.bn1.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    sample_gradients(model, digits.train.images[:3], digits.train.labels[:3])
    assert model.training
    assert not model.bn1.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
