"""Per-sample gradient norms against one backward pass a sample, and their independence of the grouping."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import build_for
from torch import nn

from gmmcnn.errors import ModelError
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


def head(n: int) -> tuple[nn.Module, ...]:
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n, 5)


class Tied(nn.Module):
    """One parameter in two layers."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.b.weight = self.a.weight
        self.head = nn.Sequential(*head(3))

    def forward(self, images):
        return self.head(torch.relu(self.b(torch.relu(self.a(images)))))


class AsksForANumber(nn.Module):
    """What it does depends on a value, which vectorised samples do not have."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Sequential(*head(4))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, images):
        self.calls += 1
        maps = self.conv(images)
        return self.head(torch.relu(maps) if maps.mean().item() > 0 else torch.tanh(maps))


def frozen():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), *head(4))
    model[0].requires_grad_(False)
    return model


NETWORKS = {
    "BatchNorm": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), *head(8)),
    "GroupNorm": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), *head(8)),
    "weight_norm": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3)), *head(8)),
    "spectral_norm": lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 8, 3)), *head(8)),
    "transposed": lambda: nn.Sequential(nn.ConvTranspose2d(3, 8, 3), nn.ReLU(), *head(8)),
    "tied": Tied,
    "frozen": frozen,
    "asks for a number": AsksForANumber,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_norms_of_any_network_are_those_of_a_backward_pass(name):
    torch.manual_seed(0)
    model, images, labels = NETWORKS[name]().eval(), torch.randn(4, 3, 10, 10), torch.arange(4)
    before = copy.deepcopy(model.state_dict())
    found = sample_gradients(model, images, labels)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    for sample in range(4):
        model.zero_grad()
        F.cross_entropy(model(images[[sample]]), labels[[sample]]).backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm().item()
        assert found.norm[sample] == pytest.approx(norm, rel=1e-4)
        for layer, norms in found.filters.items():
            convolution = model.get_submodule(layer)
            axis = 1 if convolution.transposed else 0
            squares = sum(
                p.grad.movedim(axis if p.ndim > 1 else 0, 0).reshape(len(norms[sample]), -1).square().sum(1)
                for p in convolution.parameters()
                if p.grad is not None
            )
            np.testing.assert_allclose(
                norms[sample], torch.as_tensor(squares).sqrt().expand(len(norms[sample])), rtol=1e-3
            )


class Broken(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.conv, self.compute = nn.Conv2d(3, 4, 3), forward

    def forward(self, *args):
        return self.compute(self.conv, *args)


def fails(*_):
    raise ValueError("images must be blue")


@pytest.mark.filterwarnings("ignore:.*Lazy modules:UserWarning")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Broken(fails), "does not run on images of shape .*: ValueError: images must be blue"),
        (lambda: Broken(lambda conv, x: conv(x)), r"gives \(1, 4, 8, 8\) for one image; expected logits"),
        (lambda: Broken(lambda conv, x: {"logits": x}), "gives dict for one image"),
        (
            lambda: Broken(lambda conv, x: conv(x).mean((2, 3))),
            "labels run from 0 to 4, and Broken tells 4 classes apart",
        ),
        (lambda: Broken(lambda conv, x: torch.full((1, 9), conv(x).sum().item())), "cannot be differentiated"),
        (lambda: frozen().requires_grad_(False), "no parameter with requires_grad"),
        (lambda: nn.Sequential(nn.LazyConv2d(3, 3), *head(3)), "0.weight has no size yet"),
    ],
)
def test_a_network_without_gradients_is_named_in_one_line(make, message):
    with pytest.raises(ModelError, match=message):
        sample_gradients(make(), torch.randn(5, 3, 10, 10), torch.arange(5))
