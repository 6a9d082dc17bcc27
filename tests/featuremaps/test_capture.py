"""Maps are found behind every kind of activation, equal a plain forward pass, and leave no trace in the model."""

import copy
import math
import sys
from dataclasses import replace
from functools import partial
from unittest.mock import ANY

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmmcnn.errors import CaptureError, CouplingWarning, LayerError
from gmmcnn.featuremaps import Taps, capture, find_taps


def captured(model: nn.Module, images: Tensor, taps: Taps) -> dict[str, Tensor]:
    maps: dict[str, Tensor] = {}
    capture(model, images, taps, lambda layer, tensor: maps.update({layer: tensor.clone()}))
    return maps


def reasons(taps: Taps) -> dict[str, str]:
    return {skipped.layer: skipped.reason for skipped in taps.skipped}


def descriptions(taps: Taps) -> dict[str, str]:
    return {tap.layer: tap.description for tap in taps.analysed}


class Net(nn.Module):
    """A network whose forward pass is a function of it and the images."""

    def __init__(self, forward, **layers: nn.Module) -> None:
        super().__init__()
        self.compute = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor):
        return self.compute(self, x)


def conv(n_in: int = 3, n_out: int = 4, size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, size, padding=size // 2)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.3


# ------------------------------------------------------------------------------------------------ equal to a plain pass


def test_maps_equal_a_plain_forward_pass_bit_for_bit(case) -> None:
    taps = find_taps(case.model, case.images[:1], tap="post_activation")
    maps, plain = captured(case.model, case.images, taps), case.maps(case.images)
    assert list(maps) == list(plain)
    for layer, expected in plain.items():
        assert torch.equal(maps[layer], expected), layer
    assert {tap.layer: tap.shape for tap in taps.analysed} == {name: tuple(m.shape[1:]) for name, m in plain.items()}


def test_pre_activation_maps_are_the_convolutions_own_outputs(in_place_resnet: nn.Module) -> None:
    images = torch.rand(3, 3, 16, 16)
    taps = find_taps(in_place_resnet, images[:1], tap="pre_activation")
    assert taps.skipped == ()
    expected: dict[str, Tensor] = {}
    for name, module in in_place_resnet.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _m, _i, out, name=name: expected.update({name: out.clone()}))
    with torch.no_grad():
        in_place_resnet.eval()(images)
    maps = captured(in_place_resnet, images, taps)
    assert len(expected) == 10
    assert maps.keys() == expected.keys()
    assert all(torch.equal(maps[layer], expected[layer]) for layer in maps)


def test_a_block_ends_after_the_addition_or_before_it(case) -> None:
    """Post-activation maps of a block's last convolution hold the stream; those of its branch do not."""
    after = find_taps(case.model, case.images[:1])
    before = find_taps(case.model, case.images[:1], tap="branch")
    maps, plain = captured(case.model, case.images, before), case.maps(case.images)
    ends = [name for name in plain if name.endswith(".conv2") and name.startswith(("stage", "layer"))]
    for layer, expected in plain.items():
        assert torch.equal(maps[layer], expected) is (layer not in ends), layer
    assert {layer for layer, text in descriptions(after).items() if "add" in text} == set(ends)
    for layer in ends:
        assert descriptions(before)[layer] == f"after batch_norm ({layer.removesuffix('conv2')}bn2)"


@pytest.mark.parametrize("autocast", ["bfloat16", "float16"])
def test_in_a_shorter_type_maps_are_those_of_the_model_in_it(images: Tensor, autocast: str) -> None:
    model = nn.Sequential(conv(), nn.ReLU(), conv(4, 2), nn.ReLU()).eval()
    taps = find_taps(model, images[:1], autocast=autocast)
    maps = captured(model, images, taps)
    with torch.no_grad(), torch.autocast("cpu", getattr(torch, autocast)):
        expected = model(images)
    assert expected.dtype == getattr(torch, autocast)
    assert torch.equal(maps["2"].to(expected.dtype), expected)
    exact = captured(model, images, find_taps(model, images[:1]))["2"]
    assert not torch.equal(maps["2"].float(), exact)
    torch.testing.assert_close(maps["2"].float(), exact, rtol=0.05, atol=0.05)


def test_branch_maps_are_what_is_added(in_place_resnet: nn.Module) -> None:
    """In place or not, and of the shortcut's convolution too."""
    images = torch.rand(3, 3, 16, 16)
    expected: dict[str, Tensor] = {}
    for name, module in in_place_resnet.named_modules():
        if name.endswith(("bn2", "downsample")):
            module.register_forward_hook(lambda _m, _i, out, name=name: expected.update({name: out.clone()}))
    with torch.no_grad():
        in_place_resnet.eval()(images)
    taps = find_taps(in_place_resnet, images[:1], tap="branch")
    maps = captured(in_place_resnet, images, taps)
    assert taps.skipped == ()
    assert len(expected) == 5
    for name, added in expected.items():
        layer = name.replace("bn2", "conv2") if name.endswith("bn2") else f"{name}.0"
        assert torch.equal(maps[layer], added), layer


def test_without_an_addition_of_maps_a_branch_ends_at_its_activation(images: Tensor) -> None:
    model = Net(lambda net, x: F.relu((net.conv(x) + 1.0) - net.shift), conv=conv())
    model.shift = torch.rand(1, 4, 1, 1)
    taps = find_taps(model, images[:1], tap="branch")
    assert descriptions(taps)["conv"] == "after add, sub, relu"
    assert torch.equal(captured(model, images, taps)["conv"], model(images).detach())


def test_maps_are_handed_over_during_the_pass_not_after_it(images: Tensor) -> None:
    """The last layer fails, yet the first one's maps have been received: nothing is kept to the end."""
    seen: list[str] = []

    def forward(net: Net, x: Tensor) -> Tensor:
        x = F.relu(net.one(x))
        if seen:
            raise KeyboardInterrupt
        return F.relu(net.two(x))

    model = Net(forward, one=conv(), two=conv(4))
    taps = find_taps(model, images)
    with pytest.raises(KeyboardInterrupt):
        capture(model, images, taps, lambda layer, _: seen.append(layer))
    assert seen == ["one"]


# ------------------------------------------------------------------------------------------------ every way to write it

ACTIVATION_MODULES = [
    nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.LeakyReLU(), nn.LeakyReLU(inplace=True), nn.PReLU(4), nn.RReLU(),
    nn.ELU(), nn.ELU(inplace=True), nn.SELU(), nn.CELU(), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.SiLU(inplace=True),
    nn.Mish(), nn.Tanh(), nn.Sigmoid(), nn.LogSigmoid(), nn.Hardtanh(), nn.Hardswish(), nn.Hardswish(inplace=True),
    nn.Hardsigmoid(), nn.Softplus(), nn.Softsign(), nn.Tanhshrink(), nn.Hardshrink(), nn.Softshrink(),
    nn.Threshold(0.1, 0.0),
]  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATION_MODULES, ids=str)
def test_activation_modules(activation: nn.Module, images: Tensor) -> None:
    model = nn.Sequential(conv(), nn.BatchNorm2d(4), copy.deepcopy(activation), nn.Flatten(), nn.Linear(256, 2))
    taps = find_taps(model, images[:1])
    expected = model.eval()[:3](images).detach()
    assert torch.equal(captured(model, images, taps)["0"], expected)
    assert descriptions(taps)["0"].startswith("after batch_norm (1), ")


ACTIVATION_FUNCTIONS = {
    "F.relu": F.relu,
    "F.relu in place": lambda x: F.relu(x, inplace=True),
    "torch.relu": torch.relu,
    "tensor.relu": lambda x: x.relu(),
    "tensor.relu_": lambda x: x.relu_(),
    "tensor.clamp": lambda x: x.clamp(min=0),
    "tensor.clamp_": lambda x: x.clamp_(min=0),
    "F.relu_": F.relu_,
    "tensor.sigmoid": lambda x: x.sigmoid(),
    "torch.tanh": torch.tanh,
    "F.gelu": F.gelu,
    "F.softplus": F.softplus,
    "F.prelu": lambda x: F.prelu(x, torch.full((4,), 0.1)),
}


@pytest.mark.parametrize("name", ACTIVATION_FUNCTIONS)
def test_activation_functions(name: str, images: Tensor) -> None:
    activation = ACTIVATION_FUNCTIONS[name]
    model = Net(lambda net, x: activation(net.conv(x)).square().sum(), conv=conv())
    taps = find_taps(model, images[:1])
    assert torch.equal(captured(model, images, taps)["conv"], activation(model.conv(images)).detach())


def test_the_tap_is_not_overwritten_by_later_in_place_operations(images: Tensor) -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        out = net.conv(x).relu_()
        out.mul_(-7)
        return out

    model = Net(forward, conv=conv())
    maps = captured(model, images, find_taps(model, images))
    assert torch.equal(maps["conv"], F.relu(model.conv(images)).detach())


def test_normalisation_dropout_pooling_and_addition_may_stand_between(images: Tensor) -> None:
    def forward(net: Net, x: Tensor) -> dict[str, Tensor]:
        out = net.drop(net.norm(net.conv(x)))
        return {"maps": F.relu(1.0 + F.max_pool2d(out, 2))}

    model = Net(forward, conv=conv(), norm=nn.GroupNorm(2, 4), drop=nn.Dropout(0.5))
    taps = find_taps(model, images[:1])
    assert taps.analysed[0].shape == (4, 4, 4)
    assert descriptions(taps) == {"conv": "after group_norm (norm), dropout (drop), max_pool2d, add, relu"}
    model.eval()
    assert torch.equal(captured(model, images, taps)["conv"], model(images)["maps"].detach())


def test_a_normalisation_of_the_users_own(images: Tensor) -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.conv(x)
        return F.relu((x - x.mean((2, 3), keepdim=True)) / x.std((2, 3), keepdim=True))

    model = Net(forward, conv=conv())
    maps = captured(model, images, find_taps(model, images))
    assert torch.equal(maps["conv"], model(images).detach())


def test_a_subclass_of_conv2d_and_nested_containers(images: Tensor) -> None:
    class Standardised(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight - self.weight.mean(), self.bias, padding=1)

    inner = nn.ModuleDict({"a": nn.ModuleList([nn.Sequential(Standardised(3, 4, 3), nn.ReLU())])})
    model = Net(lambda net, x: net.inner["a"][0](x), inner=inner)
    taps = find_taps(model, images[:1])
    assert [tap.layer for tap in taps.analysed] == ["inner.a.0.0"]
    assert torch.equal(captured(model, images, taps)["inner.a.0.0"], model(images).detach())


def test_a_model_that_is_one_convolution_has_the_empty_name(images: Tensor) -> None:
    taps = find_taps(conv(), images, tap="pre_activation")
    assert [tap.layer for tap in taps.analysed] == [""]


def test_pre_activation_residual_network(images: Tensor) -> None:
    """Each sum is activated in the next block: it counts for the convolution that ended in it, not for the stem."""

    def forward(net: Net, x: Tensor) -> tuple[Tensor, Tensor]:
        x = net.stem(x)
        x = x + net.b(F.relu(net.a(F.relu(x))))
        y = x + net.d(F.relu(net.c(F.relu(x))))
        return F.relu(y), y

    model = Net(forward, stem=conv(), a=conv(4), b=conv(4), c=conv(4), d=conv(4))
    taps = find_taps(model, images[:1])
    maps = captured(model, images, taps)
    assert taps.skipped == ()
    with torch.no_grad():
        stem = model.stem(images)
        after_b = stem + model.b(F.relu(model.a(F.relu(stem))))
        assert torch.equal(maps["stem"], F.relu(stem))
        assert torch.equal(maps["b"], F.relu(after_b))
        assert torch.equal(maps["d"], model(images)[0])


# ------------------------------------------------------------------------------------------- not analysed, with reasons


@pytest.mark.parametrize("shortcut_first", [True, False])
def test_the_shortcuts_convolution_is_listed_and_the_sum_counts_for_the_main_path(
    images: Tensor, shortcut_first: bool
) -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        if shortcut_first:
            identity = net.shortcut(x)
            return F.relu(net.two(F.relu(net.one(x))) + identity)
        out = net.two(F.relu(net.one(x)))
        out += net.shortcut(x)
        return F.relu(out)

    model = Net(forward, one=conv(), two=conv(4), shortcut=conv(3, 4, 1))
    taps = find_taps(model, images[:1], tap="post_activation")
    assert [tap.layer for tap in taps.analysed] == ["one", "two"]
    assert reasons(taps) == {
        "shortcut": "is joined with 'two' by add: the sum is analysed there; tap=pre_activation analyses its own output"
    }
    assert torch.equal(captured(model, images, taps)["two"], model(images).detach())


def test_layers_that_cannot_be_analysed_say_why(images: Tensor) -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        x = F.relu(net.fine(x))
        x = F.relu(net.twice(F.relu(net.twice(x))))
        x = net.expand(net.linear(x))
        x = torch.cat([F.relu(x), net.grown(x)], dim=1)
        return net.head(F.relu(x))

    layers = {"twice": conv(4), "linear": conv(4), "expand": conv(4), "grown": conv(4), "head": conv(8, 2)}
    model = Net(forward, fine=conv(), **layers, unused=conv())
    taps = find_taps(model, images[:1], tap="post_activation")
    assert [tap.layer for tap in taps.analysed] == ["fine", "expand"]
    own = "; tap=pre_activation analyses its own output"
    assert reasons(taps) == {
        "twice": "is called 2 times in one forward pass, so a sample has no single map of each filter",
        "linear": f"no activation follows: its own output enters conv2d (expand){own}",
        "grown": f"no activation follows: its own output enters cat{own}",
        "head": f"no activation follows it{own}",
        "unused": "is never called as a module in a forward pass, or is scripted",
    }


def test_more_maps_than_samples_are_not_analysed(images: Tensor) -> None:
    model = Net(
        lambda net, x: F.relu(net.conv(x.unflatten(3, (2, 4)).permute(3, 0, 1, 2, 4).flatten(0, 1))), conv=conv()
    )
    assert "gives (4, 4, 8, 4) for 2 samples" in reasons(find_taps(model, images[:2]))["conv"]


def test_only_the_layers_asked_for(images: Tensor) -> None:
    model = nn.Sequential(conv(), nn.ReLU(), conv(4), nn.ReLU())
    taps = find_taps(model, images[:1], layers=["2"])
    assert list(captured(model, images, taps)) == ["2"]
    assert taps.skipped == ()


def test_an_unknown_layer_is_named_with_the_nearest(in_place_resnet: nn.Module) -> None:
    with pytest.raises(CaptureError, match=r"'layer1\.0\.covn1'.*nearest is 'layer1\.0\.conv1'"):
        find_taps(in_place_resnet, torch.rand(1, 3, 16, 16), layers=["layer1.0.covn1"])
    with pytest.raises(LayerError, match=r"layers=\[\]: expected at least one of conv1, .*; None takes all of them"):
        find_taps(in_place_resnet, torch.rand(1, 3, 16, 16), layers=[])


@pytest.mark.parametrize(
    ("model", "example", "message"),
    [
        (nn.Linear(3, 2), torch.rand(1, 3), "Linear has no convolution"),
        (conv(), torch.rand(1, 5, 8, 8), r"does not run on images of shape \(1, 5, 8, 8\)"),
        (conv(), torch.zeros(1, 3, 8, 8, dtype=torch.uint8), r"images are torch\.uint8; expected floating point"),
    ],
)
def test_bad_input_is_refused(model: nn.Module, example: Tensor, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        find_taps(model, example)


def test_an_unknown_tap_is_refused(images: Tensor) -> None:
    with pytest.raises(CaptureError, match="expected one of auto, post_activation, branch, pre_activation"):
        find_taps(conv(), images, tap="post")


# ------------------------------------------------------------------------------------------ the best place there is


def normalised_first(net: Net, x: Tensor) -> Tensor:
    """A linear bottleneck, a shortcut, a depthwise convolution before LayerNorm, patches, and a last layer."""
    x = F.relu(net.norm(net.fine(x)))
    x = F.relu(net.two(x) + net.shortcut_norm(net.shortcut(x)))
    x = net.bottleneck_norm(net.bottleneck(x))
    y = net.pixels(net.depthwise(x).permute(0, 2, 3, 1))
    x = x + F.gelu(net.mlp(y)).permute(0, 3, 1, 2)
    return net.patches(x).flatten(2).transpose(1, 2).mean(1)


def of_many_places() -> Net:
    torch.manual_seed(0)
    model = Net(
        normalised_first,
        **{name: conv(4) for name in ("two", "bottleneck")},
        fine=conv(), shortcut=conv(4, 4, 1), depthwise=nn.Conv2d(4, 4, 3, padding=1, groups=4),
        patches=nn.Conv2d(4, 6, 2, 2), pixels=nn.LayerNorm(4), mlp=nn.Linear(4, 4),
        norm=nn.BatchNorm2d(4), shortcut_norm=nn.BatchNorm2d(4), bottleneck_norm=nn.BatchNorm2d(4),
    )  # fmt: skip
    for norm in (model.pixels, model.norm, model.shortcut_norm, model.bottleneck_norm):
        nn.init.uniform_(norm.bias, 1, 2)
    return model.eval()


def test_auto_takes_the_activation_else_the_normalisation_else_the_own_output(images: Tensor) -> None:
    model = of_many_places()
    taps = find_taps(model, images[:1])
    assert taps.skipped == ()
    assert descriptions(taps) == {
        "fine": "after batch_norm (norm), relu",
        "two": "after add, relu",
        "shortcut": "after batch_norm (shortcut_norm)",
        "bottleneck": "after batch_norm (bottleneck_norm)",
        "depthwise": "after permute, layer_norm (pixels)",
        "patches": "its own output",
    }
    expected: dict[str, Tensor] = {}
    for name in ("shortcut_norm", "bottleneck_norm", "pixels", "patches"):
        keep = partial(lambda name, _m, _i, out: expected.update({name: out.clone()}), name)
        model.get_submodule(name).register_forward_hook(keep)
    with torch.no_grad():
        model(images)
    maps = captured(model, images, taps)
    assert torch.equal(maps["shortcut"], expected["shortcut_norm"])
    assert torch.equal(maps["bottleneck"], expected["bottleneck_norm"])
    assert torch.equal(maps["depthwise"], expected["pixels"].permute(0, 3, 1, 2))
    assert torch.equal(maps["patches"], expected["patches"])


def test_auto_is_post_activation_wherever_there_is_one(case) -> None:
    after = find_taps(case.model, case.images[:1], tap="post_activation")
    best = find_taps(case.model, case.images[:1])
    assert set(after.analysed) <= set(best.analysed)
    assert {tap.layer for tap in best.analysed} - {tap.layer for tap in after.analysed} == set(reasons(after))
    assert best.skipped == ()


def test_a_normalisation_written_by_hand_is_one(images: Tensor) -> None:
    class ChannelNorm(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1e-5).sqrt()

    model = nn.Sequential(conv(), ChannelNorm(), nn.Flatten())
    taps = find_taps(model, images[:1])
    assert descriptions(taps)["0"].startswith("after sub (1), ")
    with torch.no_grad():
        assert torch.equal(captured(model, images, taps)["0"], model[:2](images))


BY_HAND = {
    "swish": lambda h: h * torch.sigmoid(h),
    "swish, the other way round": lambda h: h.sigmoid() * h,
    "swish in place": lambda h: h.mul_(h.sigmoid()),
    "quick GELU": lambda h: h * torch.sigmoid(1.702 * h),
    "mish": lambda h: h * torch.tanh(F.softplus(h)),
    "h-swish": lambda h: h * F.relu6(h + 3) / 6,
    "h-swish, divided first": lambda h: h * (F.relu6(h + 3) / 6),
    "GELU by tanh": lambda h: 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * torch.pow(h, 3)))),
    "GELU by erf": lambda h: h * 0.5 * (1.0 + torch.erf(h / math.sqrt(2.0))),
    "swish by exp": lambda h: h * (1 / (1 + torch.exp(-h))),
    "gate of channels": lambda h: h * torch.sigmoid(F.adaptive_avg_pool2d(h, 1)),
}


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("name", BY_HAND)
def test_an_activation_written_by_hand_is_tapped_at_its_product(name: str, normalised: bool, images: Tensor) -> None:
    """What is done with the product later is no more of it."""

    def forward(net: Net, x: Tensor) -> Tensor:
        x = BY_HAND[name](net.norm(net.one(x)) if normalised else net.one(x))
        return F.relu(net.two(x)).mean((2, 3))

    torch.manual_seed(0)
    model = Net(forward, one=conv(), norm=nn.BatchNorm2d(4), two=conv(4)).eval()
    taps = find_taps(model, images[:1])
    maps = captured(model, images, taps)
    with torch.no_grad():
        inner = model.one(images)
        expected = BY_HAND[name](model.norm(inner) if normalised else inner)
        assert torch.equal(maps["one"], expected)
        assert torch.equal(maps["two"], F.relu(model.two(expected)))
    assert "with its input" in descriptions(taps)["one"]


def test_a_gate_of_another_layer_is_an_activation_of_its_own(images: Tensor) -> None:
    """Squeeze and excitation: the product belongs to neither."""

    def forward(net: Net, x: Tensor) -> Tensor:
        x = F.relu(net.conv(x))
        return x * torch.sigmoid(net.excite(F.relu(net.squeeze(x.mean((2, 3), keepdim=True)))))

    model = Net(forward, conv=conv(), squeeze=conv(4, 2, 1), excite=conv(2, 4, 1))
    taps = find_taps(model, images[:1])
    assert descriptions(taps) == {"conv": "after relu", "squeeze": "after relu", "excite": "after sigmoid"}
    assert [tap.layer for tap in taps.analysed if tap.one_pixel] == ["squeeze", "excite"]
    assert [tap.map_size for tap in taps.analysed] == ["8 × 8", "1 × 1", "1 × 1"]


@pytest.mark.parametrize(
    ("make", "extent", "shape", "size"),
    [
        (nn.Conv1d, (9,), (4, 1, 7), "7"),
        (nn.Conv3d, (5, 6, 7), (4, 12, 5), "3 × 4 × 5"),
        (nn.ConvTranspose1d, (9,), (4, 1, 11), "11"),
        (nn.ConvTranspose2d, (5, 6), (4, 7, 8), "7 × 8"),
        (nn.ConvTranspose3d, (2, 3, 4), (4, 20, 6), "4 × 5 × 6"),
    ],
)
def test_all_kinds_of_convolutions(make, extent, shape, size) -> None:
    torch.manual_seed(0)
    model, images = nn.Sequential(make(3, 4, 3), nn.ReLU()), torch.randn(2, 3, *extent)
    (tap,) = find_taps(model, images[:1]).analysed
    assert (tap.kind, tap.shape, tap.map_size) == (make.__name__, shape, size)
    with torch.no_grad():
        maps = captured(model, images, find_taps(model, images[:1]))["0"]
        assert torch.equal(maps.flatten(2), model(images).flatten(2))


def test_convolutions_that_are_function_calls_are_listed(images: Tensor) -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        x = F.conv2d(F.relu(net.fine(x)), net.by_weight.weight, padding=1)
        return F.conv2d(F.conv2d(x, net.own), torch.ones(2, 4, 1, 1))

    model = Net(forward, fine=conv(), by_weight=conv(4))
    model.own = nn.Parameter(torch.rand(4, 4, 1, 1))
    taps = find_taps(model, images[:1])
    assert [tap.layer for tap in taps.analysed] == ["fine"]
    own = "is a function call, conv2d(), with a weight of its own: only modules are analysed"
    assert reasons(taps) == {
        "by_weight": "is never called as a module: its weight is used by conv2d()",
        "own": own,
        "conv2d() no. 3": own,
    }


# ----------------------------------------------------------------------------------------- samples beside each other

COUPLED = {
    "BatchNorm without statistics": nn.BatchNorm2d(4, track_running_stats=False),
    "mean of the batch": Net(lambda net, x: x - x.mean(0, keepdim=True)),
    "attention over samples": Net(
        lambda net, x: torch.einsum("nm,mchw->nchw", torch.cdist(x[:, 0, 0], x[:, 0, 0]), x) + x
    ),
}


@pytest.mark.parametrize("name", COUPLED)
def test_maps_that_depend_on_the_other_samples_are_told(name: str, images: Tensor) -> None:
    model = nn.Sequential(conv(), nn.ReLU(), conv(4), COUPLED[name], nn.ReLU(), conv(4), nn.ReLU())
    with pytest.warns(CouplingWarning, match=r"^2, 5: the maps of a sample depend on the other samples"):
        taps = find_taps(model, images[:1])
    assert {tap.layer: tap.coupled for tap in taps.analysed} == {"0": False, "2": True, "5": True}
    with pytest.warns(CouplingWarning):
        assert find_taps(model, images) == replace(taps, peak_bytes_per_sample=ANY)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4)])
def test_other_normalisations_couple_no_samples(norm: nn.Module, images: Tensor) -> None:
    taps = find_taps(nn.Sequential(conv(), norm, nn.ReLU()), images[:1])
    assert not any(tap.coupled for tap in taps.analysed)


# ------------------------------------------------------------------------------------------- networks that do not run


def fails(*_):
    raise ValueError("images must be blue")


class OfTime(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.conv(x) * t


@pytest.mark.filterwarnings("ignore:.*Lazy modules:UserWarning", "ignore:.*script.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (OfTime, "OfTime.forward needs t besides the images; wrap it in a module that takes the images alone"),
        (lambda: Net(lambda net, x: net.conv(x["images"]), conv=conv()), "does not run on images .*: IndexError"),
        (lambda: Net(fails, conv=conv()), "ValueError: images must be blue"),
        (lambda: Net(lambda net, x: sys.exit("no"), conv=conv()), r"SystemExit: it called sys.exit\('no'\)"),
        (lambda: Net(lambda net, x: net.conv(x).view(1, 4, 64), conv=conv()), r"on images of shape \(2, 3, 8, 8\)"),
        (lambda: nn.Sequential(nn.LazyConv2d(4, 3)), "0.weight has no size yet"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, device="meta")), "0.weight is on the meta device"),
        (lambda: torch.jit.script(nn.Sequential(conv())), "scripted module"),
        (lambda: conv().state_dict(), "is a OrderedDict; expected a torch.nn.Module; load it into the network"),
        (lambda: "resnet18", "the model is a str; expected a torch.nn.Module"),
    ],
)
def test_a_network_that_does_not_run_is_named_in_one_line(make, message: str, images: Tensor) -> None:
    with pytest.raises(CaptureError, match=message):
        find_taps(make(), images[:1])


# --------------------------------------------------------------------------------------------------- NaN and infinities


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_names_layer_filter_and_sample(images: Tensor, value: float) -> None:
    model = nn.Sequential(conv(), nn.LeakyReLU(), conv(4), nn.LeakyReLU())
    taps = find_taps(model, images[:1])
    with torch.no_grad():
        model[2].bias[3] = value
    with pytest.raises(CaptureError, match=r"layer '2', filter 3, sample 40: .* NaN or infinite"):
        capture(model, images, taps, lambda *_: None, sample_offset=40)
    images[4, 0, 2, 2] = value
    with pytest.raises(CaptureError, match=r"layer '0', filter \d, sample 44: "):
        capture(model, images, taps, lambda *_: None, sample_offset=40)


def test_huge_values_are_finite(images: Tensor) -> None:
    model = nn.Sequential(conv(), nn.ReLU())
    with torch.no_grad():
        model[0].bias[:] = 3e38  # their sum overflows
    largest = []
    capture(model, images, find_taps(model, images[:1]), lambda _, maps: largest.append(maps.max().item()))
    assert largest == [pytest.approx(3e38)]


def test_a_pass_that_goes_another_way_is_an_error(images: Tensor) -> None:
    model = Net(lambda net, x: F.relu(net.conv(x)) if len(x) == 1 else x, conv=conv())
    taps = find_taps(model, images[:1])
    with pytest.raises(CaptureError, match="'conv': this forward pass computes its maps another way"):
        captured(model, images, taps)
    smaller = find_taps(nn.Sequential(conv(), nn.ReLU()), images[:1, :, :4])
    with pytest.raises(CaptureError, match="'0': this forward pass computes"):
        captured(nn.Sequential(conv(), nn.ReLU()), images, smaller)


# ------------------------------------------------------------------------------------------------- comes back as it was


class Restless(nn.Module):
    """Draws random numbers and counts its calls in a buffer that it replaces, even in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()
        self.norm = nn.BatchNorm2d(4)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.fail = False

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        self.norm.running_mean.add_(1)
        x = F.relu(self.norm(self.conv(x))) + torch.rand(())
        if self.fail:
            raise RuntimeError("broken")
        return x


@pytest.mark.parametrize("how", ["well", "the model fails", "the consumer fails", "interrupted"])
def test_the_model_comes_back_as_it_was(images: Tensor, how: str) -> None:
    torch.manual_seed(0)
    restless = Restless()
    model = nn.Sequential(restless, conv(4), nn.ReLU()).train()
    restless.norm.eval()
    model[1].weight.requires_grad_(False)
    model[0].conv.weight.grad = torch.ones_like(model[0].conv.weight)
    fired: list[str] = []
    model[1].register_forward_hook(lambda *_: fired.append("own hook"))
    taps = find_taps(model, images)

    modes = [module.training for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    tensors = {id(tensor) for tensor in [*model.parameters(), *model.buffers()]}
    random_state = torch.get_rng_state()
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]

    def consume(layer: str, _: Tensor) -> None:
        if how == "the consumer fails":
            raise ZeroDivisionError
        if how == "interrupted" and layer == "1":
            raise KeyboardInterrupt

    restless.fail = how == "the model fails"
    problem = {
        "the model fails": RuntimeError,
        "the consumer fails": ZeroDivisionError,
        "interrupted": KeyboardInterrupt,
    }
    if how in problem:
        with pytest.raises(problem[how]):
            capture(model, images, taps, consume)
    else:
        capture(model, images, taps, consume)
        assert fired == ["own hook"] * 4  # to find the taps, beside itself, beside another sample, to capture

    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert {id(tensor) for tensor in [*model.parameters(), *model.buffers()]} == tensors
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == hooks
    assert torch.equal(model[0].conv.weight.grad, torch.ones_like(model[0].conv.weight))
    assert not model[1].weight.requires_grad
    assert model[0].conv.weight.requires_grad
    assert torch.is_grad_enabled()


# ------------------------------------------------------------------------------------------------------- wrapped models


def test_data_parallel_is_looked_through(in_place_resnet: nn.Module) -> None:
    images = torch.rand(2, 3, 16, 16)
    plain = find_taps(in_place_resnet, images)
    assert find_taps(nn.DataParallel(in_place_resnet), images) == plain
    maps = captured(nn.DataParallel(in_place_resnet), images, plain)
    assert torch.equal(maps["layer2.1.conv2"], captured(in_place_resnet, images, plain)["layer2.1.conv2"])


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch's own compiler warns about itself
def test_compiled_models_and_submodules_are_run_uncompiled(images: Tensor) -> None:
    part = nn.Sequential(conv(4), nn.ReLU())
    model = nn.Sequential(conv(), nn.ReLU(), torch.compile(part, backend="eager"))
    model(images)  # compiled before the hooks exist
    compiled = torch.compile(model, backend="eager")
    compiled(images)
    taps = find_taps(compiled, images[:1])
    assert [tap.layer for tap in taps.analysed] == ["0", "2._orig_mod.0"]
    maps = captured(compiled, images, taps)
    with torch.no_grad():
        first = F.relu(model[0](images))
        assert torch.equal(maps["0"], first)
        assert torch.equal(maps["2._orig_mod.0"], F.relu(part[0](first)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_model_on_the_gpu_gets_its_images_there_and_keeps_its_random_state(in_place_resnet: nn.Module) -> None:
    model, images = in_place_resnet.cuda(), torch.rand(3, 3, 16, 16)
    random_state = torch.cuda.get_rng_state()
    maps = captured(model, images, find_taps(model, images[:1]))
    assert maps["conv1"].is_cuda
    assert torch.equal(torch.cuda.get_rng_state(), random_state)
    with torch.no_grad():
        model.eval()
        assert torch.equal(maps["conv1"], F.relu(model.bn1(model.conv1(images.cuda()))))
