"""Masked channels through random graphs against a rule that knows no function by name, and what is refused."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import gmmcnn
from gmmcnn.errors import ModelError

N_CHANNELS = 8


def conv(n_in: int, n_out: int = N_CHANNELS, size: int = 1, **options) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, size, padding=size // 2, **options)


class Parts(nn.Module):
    """A first convolution, and layers that functions of a graph use; every one has a shift."""

    def __init__(self, program: Callable | None = None) -> None:
        super().__init__()
        self.program = program
        self.first, self.mixing, self.depthwise = conv(3), conv(8, 8, 3), conv(8, 16, 3, groups=8)
        self.norm, self.half_norm, self.pixels = nn.BatchNorm2d(8), nn.BatchNorm2d(4), nn.Linear(4, 4)
        self.shift, self.places = nn.Parameter(torch.rand(8, 1, 1)), nn.Parameter(torch.rand(1, 8, 4, 4))
        for norm in (self.norm, self.half_norm):
            nn.init.uniform_(norm.bias, 1, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.program(self, self.first(images))


def shuffled(maps: Tensor) -> Tensor:
    n, c, h, w = maps.shape
    return maps.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


def item_set(maps: Tensor) -> Tensor:
    """The first half changed by ``maps[...] = ...``, in a tensor of its own."""
    maps = maps.clone()
    maps[:, :4] = torch.sigmoid(maps[:, 4:])
    return maps


def gathered(maps: Tensor) -> Tensor:
    """Written part by part into an empty tensor."""
    result = torch.zeros_like(maps)
    result[:, 2:] = maps[:, :6]
    result[:, :2] = maps[:, 6:] + 1
    return result


ONE: dict[str, Callable[[Parts, Tensor], Tensor]] = {
    "relu": lambda net, x: F.relu(x),
    "sigmoid": lambda net, x: x.sigmoid(),
    "sigmoid_": lambda net, x: x.clone().sigmoid_(),
    "norm": lambda net, x: net.norm(x),
    "by hand": lambda net, x: (x * 2 + net.shift - 1) / 3,
    "reversed": lambda net, x: 1 - x,
    "places": lambda net, x: x + net.places,
    "ones": lambda net, x: torch.ones_like(x) + x,
    "leaky": lambda net, x: torch.where(x > 0, x, 0.1 * x),
    "where, constants": lambda net, x: torch.where(x >= 0, 1.0, -1.0),
    "comparison": lambda net, x: (x >= 0).float(),
    "padded and pooled": lambda net, x: F.max_pool2d(F.pad(x, (1, 1, 1, 1), value=0.5), 3, 1),
    "average": lambda net, x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
    "up and down": lambda net, x: F.adaptive_avg_pool2d(F.interpolate(x, scale_factor=2), 4),
    "chunk": lambda net, x: torch.cat([torch.sigmoid(half) for half in x.chunk(2, 1)], 1),
    "split": lambda net, x: torch.cat([net.half_norm(half) for half in torch.split(x, 4, 1)][::-1], 1),
    "unbind": lambda net, x: torch.stack(x.unbind(1)[::-1], 1),
    "select": lambda net, x: torch.cat([x[:, 3:], x[:, :3]], 1),
    "slice, strided": lambda net, x: torch.cat([x[:, ::2].exp(), x[:, 1::2]], 1),
    "index_select": lambda net, x: x.index_select(1, torch.tensor([7, 0, 1, 1, 4, 5, 6, 2])),
    "list of channels": lambda net, x: x[:, [1, 0, 3, 2, 5, 4, 7, 6]],
    "repeat": lambda net, x: x[:, :4].repeat(1, 2, 1, 1),
    "repeat_interleave": lambda net, x: x[:, 4:].repeat_interleave(2, 1),
    "expand": lambda net, x: x[:, :1].expand(-1, 8, -1, -1),
    "shuffle": lambda net, x: shuffled(x),
    "shuffle by torch": lambda net, x: F.channel_shuffle(x, 4),
    "pixel_shuffle": lambda net, x: F.pixel_unshuffle(torch.sigmoid(F.pixel_shuffle(x, 2)), 2),
    "parts pooled": lambda net, x: F.avg_pool2d(torch.cat([x, x.flip(1)], 2), 3, 1, 1)[:, :, 2:6],
    "pixels of channels pooled": lambda net, x: F.adaptive_avg_pool2d(F.pixel_shuffle(x, 2), 4).repeat(1, 4, 1, 1),
    "flip": lambda net, x: x.flip(1, 3),
    "roll": lambda net, x: torch.roll(x, (1, 2), (1, 2)),
    "data": lambda net, x: x.data,
    "channels last": lambda net, x: torch.sigmoid(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    "flattened": lambda net, x: (x.flatten(2).transpose(1, 2) + 1).transpose(1, 2).reshape(x.shape),
    "memory format": lambda net, x: x.contiguous(memory_format=torch.channels_last) + 0.5,
    "pixels mixed": lambda net, x: net.pixels(x),
    "rows by matmul": lambda net, x: torch.matmul(x, net.pixels.weight) + 1,
    "item set": lambda net, x: item_set(x),
    "gathered": lambda net, x: gathered(x),
    "spread": lambda net, x: torch.sigmoid(x.mean((2, 3), keepdim=True)).expand(-1, -1, 4, 4),
    "largest": lambda net, x: (x.amax(dim=3, keepdim=True) + 1).expand(-1, -1, -1, 4),
    "depthwise": lambda net, x: net.depthwise(x)[:, 3:11],
    "mixing": lambda net, x: net.mixing(x),
}
TWO: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda x, y: x + y,
    "iadd": lambda x, y: x.clone().add_(y),
    "sub": lambda x, y: torch.sub(x, y, alpha=0.5),
    "maximum": lambda x, y: torch.maximum(x, y),
    "where": lambda x, y: torch.where(x > y, x, y),
    "halves": lambda x, y: torch.cat([x[:, :4], y[:, 4:]], 1),
}
PRODUCT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mul": lambda x, y: x * y,
    "gate": lambda x, y: torch.sigmoid(x) * y,
}


@dataclass
class Masked:
    """Maps, and where anything but masked filters went into them."""

    maps: Tensor
    alive: Tensor

    @property
    def poisoned(self) -> Tensor:
        return torch.where(self.alive, torch.nan, self.maps)


def depends(function: Callable, *inputs: Masked) -> Masked:
    """What NaN reaches depends on what is alive; all else is made of masked channels and constants, and is zero."""
    alive = function(*(maps.poisoned for maps in inputs)).isnan()
    return Masked(torch.where(alive, function(*(maps.maps for maps in inputs)), 0), alive)


def step_by_step(net: Parts, name: str, maps: Masked) -> Masked:
    """Functions whose result is no NaN where their input is, or whose constants fill places of live channels."""
    if name == "by hand":
        return depends(lambda x: (x * 2 + net.shift - 1) / 3, maps)
    if name == "leaky":
        return Masked(torch.where(maps.maps > 0, maps.maps, 0.1 * maps.maps), maps.alive)
    if name in ("where, constants", "comparison", "padded and pooled"):
        return Masked(torch.where(maps.alive, ONE[name](net, maps.maps), 0), maps.alive)
    if name == "depthwise":
        every = torch.zeros_like(maps.maps)
        alive = maps.alive.any(dim=(2, 3), keepdim=True).expand_as(every).repeat_interleave(2, 1)[:, 3:11]
        return Masked(torch.where(alive, ONE[name](net, maps.maps), 0), alive)
    if name == "item set":
        later = depends(lambda x: torch.sigmoid(x[:, 4:]), maps)
        return Masked(*(torch.cat([a, b[:, 4:]], 1) for a, b in ((later.maps, maps.maps), (later.alive, maps.alive))))
    return depends(lambda x: ONE[name](net, x), maps)


def by_dependence(net: Parts, steps: list[tuple], images: Tensor, mask: list[int]) -> list[Masked]:
    first = net.first(images)
    alive = torch.ones_like(first, dtype=torch.bool)
    alive[:, mask] = False
    pool = [Masked(torch.where(alive, first, 0), alive)]
    for name, i, j in steps:
        x, y = pool[i % len(pool)], pool[j % len(pool)]
        if name in ONE:
            pool.append(step_by_step(net, name, x))
        elif name in TWO:
            pool.append(
                Masked(torch.where(x.alive | y.alive, torch.maximum(x.maps, y.maps), 0), x.alive | y.alive)
                if name == "where"
                else depends(TWO[name], x, y)
            )
        else:
            gate = depends(torch.sigmoid, x) if name == "gate" else x
            both = gate.alive & y.alive
            pool.append(Masked(torch.where(both, gate.maps * y.maps, 0), both))
    return pool


def followed(steps: list[tuple]) -> Callable[[Parts, Tensor], list[Tensor]]:
    def run(net: Parts, first: Tensor) -> list[Tensor]:
        pool = [first]
        for name, i, j in steps:
            x, y = pool[i % len(pool)], pool[j % len(pool)]
            pool.append(ONE[name](net, x) if name in ONE else (TWO | PRODUCT)[name](x, y))
        return pool

    return run


STEPS = st.lists(
    st.tuples(st.sampled_from([*ONE, *TWO, *PRODUCT]), st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=8
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    STEPS,
    st.lists(st.integers(0, N_CHANNELS - 1), min_size=1, max_size=4, unique=True),
    st.integers(0, 2**31),
    st.integers(1, 2),
)
def test_masked_channels_stay_zero_through_any_graph(steps, mask, seed, n_samples):
    torch.manual_seed(seed)
    net = Parts(followed(steps)).eval()
    images = torch.randn(n_samples, 3, 4, 4)
    with torch.no_grad():
        expected = by_dependence(net, steps, images, mask)
        with gmmcnn.masked(net, {"first": mask}):
            found = net(images)
    for step, (maps, reference) in enumerate(zip(found, expected, strict=True)):
        torch.testing.assert_close(maps, reference.maps, rtol=1e-5, atol=1e-5, msg=lambda m, s=step: f"{s}: {m}")


@pytest.mark.parametrize("name", ONE)
def test_every_function_of_the_graphs_by_itself(name):
    torch.manual_seed(0)
    net = Parts(followed([(name, 0, 0), ("sigmoid", 1, 0)])).eval()
    images = torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        expected = by_dependence(net, [(name, 0, 0), ("sigmoid", 1, 0)], images, [1, 6])
        with gmmcnn.masked(net, {"first": [1, 6]}):
            found = net(images)
    for maps, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(maps, reference.maps, rtol=1e-5, atol=1e-5)


def sigmoid(x):
    return torch.sigmoid(x)


with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    SCRIPTED = torch.jit.script(sigmoid)


REFUSED = {
    "cos": lambda net, x: torch.cos(x),
    "lerp": lambda net, x: torch.lerp(x, torch.ones_like(x), 0.5),
    "cumsum": lambda net, x: x.cumsum(1),
    "scatter": lambda net, x: torch.zeros_like(x).scatter(1, torch.zeros_like(x, dtype=torch.int64), x),
    "index_add": lambda net, x: torch.zeros(8, *x.shape[2:]).index_add(0, torch.arange(8), x[0]),
    "sort": lambda net, x: x.sort(1).values,
    "divided by": lambda net, x: net.mixing(x) / x,
    "weight of a normalisation": lambda net, x: F.instance_norm(x.detach() * 0 + 1, weight=x.mean((0, 2, 3))),
    "pixels of a part": lambda net, x: net.depthwise(torch.cat([x, x.flip(1)], 2)),
    "padding between parts": lambda net, x: F.pad(torch.cat([x, x.flip(1)], 2), (0, 0, 1, 1), mode="reflect"),
    "bits": lambda net, x: x.view(torch.int32).float(),
    "scripted": lambda net, x: SCRIPTED(x),
    "vmap": lambda net, x: torch.func.vmap(torch.sigmoid)(x),
    "an alias changed": lambda net, x: [half := x[:, :4], x.add_(net.shift), torch.sigmoid(half)][-1],
    "a view changed": lambda net, x: [x[:, :4].add_(torch.rand(1)), torch.sigmoid(x)][-1],
    "into a part": lambda net, x: [space := torch.zeros(2, 16, 4, 4), space[:, :8].copy_(x), space][-1],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_shown_to_stay_zero_is_refused(name):
    net = Parts(REFUSED[name]).eval()
    with gmmcnn.masked(net, {"first": [1]}), torch.no_grad(), pytest.raises(ModelError, match=r"cannot\s+be followed"):
        net(torch.randn(2, 3, 4, 4)).sum()


def test_two_masked_branches_that_are_added_are_masked_where_both_are():
    """Each summand passes where the other is masked: zero is what both lack, and no more."""

    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.norm = conv(3), conv(3), nn.BatchNorm2d(8)
            nn.init.ones_(self.norm.bias)

        def forward(self, images):
            return torch.sigmoid(self.norm(self.one(images) + self.two(images)))

    net, images = Branches().eval(), torch.randn(2, 3, 4, 4)
    with torch.no_grad(), gmmcnn.masked(net, {"one": [0, 1], "two": [1, 2]}):
        maps = net(images)
    with torch.no_grad():
        one, two = net.one(images), net.two(images)
        one[:, [0, 1]], two[:, [1, 2]] = 0, 0
        expected = torch.sigmoid(net.norm(one + two))
    expected[:, 1] = 0
    torch.testing.assert_close(maps, expected)


WRITTEN = {
    "item": lambda space, maps: space.__setitem__((slice(None), slice(None)), maps),
    "part": lambda space, maps: space[:, :8].copy_(maps),
    "in place": lambda space, maps: space.add_(maps),
}


@pytest.mark.parametrize("how", WRITTEN)
def test_zeros_that_something_was_written_to_are_a_stream_and_no_shift(how):
    def forward(net, x):
        stream = net.mixing(x)
        space = torch.zeros_like(stream)
        WRITTEN[how](space, stream)
        return x + space

    net, images = Parts(forward).eval(), torch.randn(2, 3, 4, 4)
    with torch.no_grad(), gmmcnn.masked(net, {"first": [1]}):
        maps = net(images)
    with torch.no_grad():
        first = net.first(images)
        first[:, 1] = 0
        torch.testing.assert_close(maps, first + net.mixing(first))


def test_a_layer_without_any_filter_left_is_read_as_zero():
    net = Parts(lambda net, x: net.mixing(F.relu(x))).eval()
    with torch.no_grad(), gmmcnn.masked(net, {"first": range(8)}):
        maps = net(torch.randn(2, 3, 4, 4))
    torch.testing.assert_close(maps, net.mixing.bias.detach()[:, None, None].expand_as(maps))


def test_what_is_done_with_the_outputs_inside_the_block_is_no_matter():
    net = Parts(lambda net, x: x).eval()
    with torch.no_grad(), gmmcnn.masked(net, {"first": [1]}):
        maps = net(torch.randn(2, 3, 4, 4))
        assert not maps[:, 1].any()
        assert (maps[:, 1] == 0).all()
        assert int((maps == 0).sum()) >= 32
        assert maps.argmax(1).max() < 8
        assert "tensor" in repr(maps)
        torch.testing.assert_close(maps, maps.clone())
        assert maps.numpy().shape == tuple(maps.shape) == (2, 8, 4, 4)


def test_attention_over_masked_values():
    """Values of a masked channel are zero; what queries and keys make of theirs is a weight, and no channel."""

    def attend(net, x):
        words = x.flatten(2).transpose(1, 2)
        return torch.sigmoid(F.scaled_dot_product_attention(words, words, words)).transpose(1, 2).reshape(x.shape)

    net = Parts(attend).eval()
    with torch.no_grad(), gmmcnn.masked(net, {"first": [1]}):
        maps = net(torch.randn(2, 3, 4, 4))
    assert not maps[:, 1].any()
    assert maps[:, 0].all()


@pytest.mark.parametrize("make", [nn.Conv1d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d])
def test_all_kinds_of_convolutions_are_masked(make):
    layer = make(3, 4, 3)
    net = nn.Sequential(layer, nn.Sigmoid()).eval()
    with torch.no_grad(), gmmcnn.masked(net, {"0": [2]}):
        maps = net(torch.randn(2, 3, *len(layer.kernel_size) * [5]))
    assert not maps[:, 2].any()
    assert maps[:, [0, 1, 3]].all()


def test_what_changes_a_masked_view_in_place_leaves_it_masked():
    """The shift of sigmoid(0) goes, and the view is no reason to refuse: its own channels are known."""

    class OfHalves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv(3)

        def forward(self, images: Tensor) -> Tensor:
            halves = self.conv(images).unflatten(1, (2, 4))
            halves.sigmoid_()
            return halves

    model, images = OfHalves(), torch.rand(2, 3, 5, 5)
    with torch.no_grad():
        expected = model(images)
        with gmmcnn.masked(model, {"conv": [0, 5]}):
            found = model(images)
    assert not found[:, 0, 0].any()
    assert not found[:, 1, 1].any()
    expected[:, 0, 0] = expected[:, 1, 1] = 0
    torch.testing.assert_close(found, expected)


def test_a_masked_channel_that_is_filled_in_place_is_zero_in_the_tensor_itself():
    """Whoever looks at the tensor afterwards, and not at what the function returned, finds it so."""

    class Filled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv(3)

        def forward(self, images: Tensor) -> Tensor:
            maps = self.conv(images)
            maps.masked_fill_(torch.ones_like(images[:, :1], dtype=torch.bool), 5.0)
            return maps

    model, images = Filled(), torch.rand(2, 3, 5, 5)
    with torch.no_grad(), gmmcnn.masked(model, {"conv": [0, 3]}):
        found = model(images)
    assert not found[:, [0, 3]].any()
    assert (found[:, [1, 2, 4, 5, 6, 7]] == 5).all()
