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


def head(n: int) -> tuple[nn.Module, ...]:
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n, 5)


class Split(nn.Module):
    """As the blocks of YOLO: half of the channels go on, both halves are joined again."""

    def __init__(self):
        super().__init__()
        self.conv, self.part = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Sequential(*head(12))

    def forward(self, images):
        first, second = torch.relu(self.conv(images)).chunk(2, 1)
        return self.head(torch.cat([first, second, torch.relu(self.part(second))], 1))


class Doubled(nn.Module):
    """Channels beside the image's own."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Sequential(*head(11))

    def forward(self, images):
        return self.head(torch.cat([torch.relu(self.conv(images)), images], 1))


def behind(*layers: nn.Module, n: int = 8) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), *layers, *head(n))


P = nn.utils.parametrizations
UNUSUAL = {
    "grouped convolution behind": (
        lambda: behind(nn.ReLU(), nn.Conv2d(8, 6, 3, groups=2), n=6),
        {"0": [1]},
        "silenced",
    ),
    "grouped convolution": (lambda: behind(nn.ReLU(), nn.Conv2d(8, 6, 3, groups=2), n=6), {"2": [1]}, "silenced"),
    "group_norm": (lambda: behind(nn.GroupNorm(2, 8), nn.ReLU()), {"0": [1]}, "silenced"),
    "instance_norm": (lambda: behind(nn.InstanceNorm2d(8, affine=True), nn.ReLU()), {"0": [1]}, "removed"),
    "pixel_shuffle": (lambda: behind(nn.PixelShuffle(2), nn.ReLU(), n=2), {"0": [1]}, "silenced"),
    "chunk": (Split, {"conv": [1]}, "silenced"),
    "joined with the image": (Doubled, {"conv": [1, 5]}, "removed"),
    "weight_norm": (
        lambda: nn.Sequential(P.weight_norm(nn.Conv2d(3, 8, 3)), nn.ReLU(), *head(8)),
        {"0": [1]},
        "removed",
    ),
    "spectral_norm": (lambda: nn.Sequential(P.spectral_norm(nn.Conv2d(3, 8, 3)), *head(8)), {"0": [1]}, "removed"),
    "depthwise": (lambda: behind(nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU()), {"0": [1]}, "removed"),
    "both of a depthwise pair": (
        lambda: behind(nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU()),
        {"0": [1], "2": [1, 3]},
        "removed",
    ),
    "transposed behind": (lambda: behind(nn.ReLU(), nn.ConvTranspose2d(8, 4, 3), n=4), {"0": [1]}, "removed"),
    "transposed": (lambda: behind(nn.ConvTranspose2d(8, 4, 3), nn.ReLU(), n=4), {"1": [1]}, "removed"),
    "last layer": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten()), {"0": [1]}, "silenced"),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_networks_are_cut_or_silenced_and_compute_the_same(name):
    torch.manual_seed(0)
    make, mask, expected = UNUSUAL[name]
    model = unsettle(make()).eval()
    images = torch.randn(4, 3, 16, 16)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    removal = gmmcnn.remove_filters(model, mask, images[:1])
    assert (removal.removed if expected == "removed" else removal.silenced) == mask
    assert not (removal.silenced if expected == "removed" else removal.removed)
    with torch.no_grad(), gmmcnn.masked(model, mask):
        logits = model(images)
    with torch.no_grad():
        torch.testing.assert_close(removal.model(images), logits, rtol=1e-4, atol=1e-5)
        assert (model(images) - logits).abs().max() > 1e-4
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    sizes = [sum(p.numel() for p in m.parameters()) for m in (removal.model, model)]
    assert (sizes[0] < sizes[1]) == (expected == "removed")


class Given(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.conv, self.compute = nn.Conv2d(3, 4, 3), forward

    def forward(self, *args):
        return self.compute(self.conv, *args)


class OfTime(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, images, t):
        return self.conv(images) * t


class OfFields(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, batch):
        return self.conv(batch["images"])


def fails(*_):
    raise ValueError("images must be blue")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (OfTime, "OfTime.forward needs t besides the images; wrap it in a module that takes the images alone"),
        (OfFields, r"does not run on images of shape \(1, 3, 6, 6\): IndexError"),
        (lambda: Given(fails), "does not run on images of shape .*: ValueError: images must be blue"),
        (lambda: Given(lambda conv, x: {"logits": conv(x)}), "gives a dict; expected a tensor or a tuple of tensors"),
        (lambda: Given(lambda conv, x: None), "gives a NoneType"),
        (lambda: Given(lambda conv, x: sys.exit(3)), r"SystemExit: it called sys.exit\(3\)"),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), "'conv' is not a convolution of this model"),
    ],
)
def test_networks_that_do_not_run_are_named_in_one_line(make, message):
    with pytest.raises(ModelError, match=message):
        gmmcnn.remove_filters(make().eval(), {"conv": [0]}, torch.randn(1, 3, 6, 6))


def test_a_network_is_never_left_half_cut(digits, monkeypatch):
    """What the third party raises after it has begun to cut costs a copy; the filter is silenced."""
    import torch_pruning

    def half(self, *args, **kwargs):
        next(iter(self))[0].target.module.weight.data.zero_()
        raise SystemExit("no more")

    monkeypatch.setattr(torch_pruning.dependency.Group, "prune", half)
    model = unsettle(build_for("lenet5", digits)).eval()
    images = digits.validation.images[:5]
    removal = remove_filters(model, {"conv1": [0]}, images[:1])
    assert removal.silenced == {"conv1": [0]}
    with torch.no_grad(), gmmcnn.masked(model, {"conv1": [0]}):
        torch.testing.assert_close(removal.model(images), model(images), rtol=1e-5, atol=1e-5)
