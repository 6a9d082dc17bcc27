"""Maps are found behind every kind of activation, equal a plain forward pass, and leave no trace in the model."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmmcnn.errors import CaptureError, LayerError
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
    taps = find_taps(case.model, case.images[:1])
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
    taps = find_taps(model, images[:1])
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
    taps = find_taps(model, images[:1])
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
        (nn.Linear(3, 2), torch.rand(1, 3), "Linear has no Conv2d"),
        (conv(), torch.rand(1, 5, 8, 8), r"does not run on images of shape \(1, 5, 8, 8\)"),
        (conv(), torch.zeros(1, 3, 8, 8, dtype=torch.uint8), r"images are torch\.uint8; expected floating point"),
    ],
)
def test_bad_input_is_refused(model: nn.Module, example: Tensor, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        find_taps(model, example)


def test_an_unknown_tap_is_refused(images: Tensor) -> None:
    with pytest.raises(CaptureError, match="expected one of post_activation, branch, pre_activation"):
        find_taps(conv(), images, tap="post")


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
        assert fired == ["own hook"] * 2

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
