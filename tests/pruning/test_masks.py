"""Masks: what they zero, that they leave no trace, and that their effect is measured beside controls."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gmmcnn
from gmmcnn.errors import ModelError
from gmmcnn.pruning.masks import compare_masks, evaluate_masks, load_mask, random_masks, save_mask


class Shifted(nn.Module):
    """A convolution whose normalisation and activation would both revive a zero channel."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.act = activation
        self.head = nn.Conv2d(4, 2, 1)
        nn.init.normal_(self.norm.bias, mean=3.0)
        self.norm.running_mean.fill_(2.0)

    def features(self, images):
        return self.act(self.norm(self.conv(images)))

    def forward(self, images):
        return self.head(self.features(images)).mean(dim=(2, 3))


IMAGES = torch.linspace(-1, 1, 2 * 3 * 6 * 6).reshape(2, 3, 6, 6)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU(inplace=True), nn.Sigmoid(), nn.Softplus(), nn.GELU()])
def test_a_masked_filter_is_zero_after_normalisation_and_activation(activation):
    torch.manual_seed(0)
    model = Shifted(activation).eval()
    with gmmcnn.masked(model, {"conv": [1, 3]}), torch.no_grad():
        maps = model.features(IMAGES)
    assert (maps[:, [1, 3]] == 0).all()
    assert (maps[:, [0, 2]] != 0).any()


@pytest.mark.parametrize("activation", [nn.ReLU(inplace=True), nn.Sigmoid()])
def test_a_masked_filter_stays_zero_and_gets_no_gradient_in_training(activation):
    torch.manual_seed(0)
    model = Shifted(activation).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    before = copy.deepcopy(model.state_dict())
    with gmmcnn.masked(model, {"conv": [1, 3]}):
        for _ in range(3):
            assert (model.features(IMAGES)[:, [1, 3]] == 0).all()
            optimizer.zero_grad()
            F.cross_entropy(model(IMAGES), torch.tensor([0, 1])).backward()
            optimizer.step()
    after = model.state_dict()
    for name in ("conv.weight", "conv.bias", "norm.weight", "norm.bias"):
        assert torch.equal(after[name][[1, 3]], before[name][[1, 3]])
    assert torch.equal(after["head.weight"][:, [1, 3]], before["head.weight"][:, [1, 3]])  # nobody reads them
    assert not torch.equal(after["conv.weight"][[0, 2]], before["conv.weight"][[0, 2]])
    assert not torch.equal(after["head.weight"][:, [0, 2]], before["head.weight"][:, [0, 2]])


def test_masking_equals_cutting_the_channel_out():
    torch.manual_seed(0)
    model = Shifted(nn.Sigmoid()).eval()
    kept = [0, 2]
    smaller = copy.deepcopy(model)
    smaller.conv.weight.data, smaller.conv.bias.data = model.conv.weight.data[kept], model.conv.bias.data[kept]
    smaller.norm = nn.BatchNorm2d(2).eval()
    smaller.norm.load_state_dict(
        {key: value[kept] if value.ndim else value for key, value in model.norm.state_dict().items()}
    )
    smaller.head.weight.data = model.head.weight.data[:, kept]
    with gmmcnn.masked(model, {"conv": [1, 3]}), torch.no_grad():
        masked_logits = model(IMAGES)
    torch.testing.assert_close(masked_logits, smaller(IMAGES), rtol=0, atol=1e-6)  # sums in another order


def test_the_model_is_exactly_restored_also_after_an_error(digits_cnn, digits):
    images = digits.validation.images[:8]
    before, state = digits_cnn(images), copy.deepcopy(digits_cnn.state_dict())
    hooks = [len(module._forward_hooks) for module in digits_cnn.modules()]

    def fail_while_masked():
        with gmmcnn.masked(digits_cnn, {"features.conv2": [0]}):
            assert not torch.equal(digits_cnn(images), before)
            raise KeyError

    with pytest.raises(KeyError):
        fail_while_masked()
    assert torch.equal(digits_cnn(images), before)
    assert [len(module._forward_hooks) for module in digits_cnn.modules()] == hooks
    assert all(torch.equal(value, state[key]) for key, value in digits_cnn.state_dict().items())


def test_a_residual_stream_passes_a_masked_branch():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            nn.init.ones_(self.norm.bias)

        def forward(self, x):
            return F.relu(self.norm(self.conv(x)) + x)

    block = Block().eval()
    with gmmcnn.masked(block, {"conv": [2]}):
        torch.testing.assert_close(block(IMAGES)[:, 2], F.relu(IMAGES)[:, 2], rtol=0, atol=0)


def test_a_residual_stream_that_is_added_in_place_passes_a_masked_branch():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.relu = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(inplace=True)
            nn.init.ones_(self.norm.bias)

        def forward(self, x):
            out = self.norm(self.conv(x))
            out += x
            return self.relu(out)

    block = Block().eval()
    with gmmcnn.masked(block, {"conv": [2]}), torch.no_grad():
        torch.testing.assert_close(block(IMAGES)[:, 2], F.relu(IMAGES)[:, 2], rtol=0, atol=0)


class Between(nn.Module):
    """A convolution, something, a normalisation whose shift would revive a channel, and an activation that would."""

    def __init__(self, between):
        super().__init__()
        self.conv, self.other, self.norm = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.norm_of_pixels = nn.LayerNorm(4)
        for norm in (self.norm, self.norm_of_pixels):
            nn.init.ones_(norm.bias)
        self.between = between

    def forward(self, images):
        return torch.sigmoid(self.between(self, images))


BETWEEN = {
    "function": lambda net, x: net.conv(x),
    "pooling": lambda net, x: F.relu(net.norm(nn.MaxPool2d(2)(net.conv(x)))),
    "average pooling": lambda net, x: net.norm(nn.AdaptiveAvgPool2d(2)(net.conv(x))),
    "padding": lambda net, x: net.norm(nn.ConstantPad2d(1, 3.0)(net.conv(x))),
    "upsampling": lambda net, x: net.norm(nn.Upsample(scale_factor=2)(nn.Identity()(net.conv(x)))),
    "dropout": lambda net, x: net.norm(nn.Dropout2d(0.5)(net.conv(x))),
    "method": lambda net, x: net.norm(net.conv(x).sigmoid_()),
    "in place, unnoticed": lambda net, x: [maps := net.conv(x), F.relu(maps, inplace=True), net.norm(maps)][-1],
    "by hand": lambda net, x: (net.conv(x) * 2 + torch.ones(4, 1, 1)) / 3,
    "gate": lambda net, x: net.norm(torch.sigmoid(net.other(x)) * net.conv(x)),
    "channels last": lambda net, x: net.norm_of_pixels(net.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    "joined": lambda net, x: nn.BatchNorm2d(8)(torch.cat([net.conv(x), net.other(x)], 1)),
    "unknown, but zero at zero": lambda net, x: net.norm(torch.sin(net.conv(x))),
}


@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("training", [True, False])
def test_a_masked_filter_stays_zero_whatever_keeps_channels_apart(between, training):
    torch.manual_seed(0)
    model = Between(BETWEEN[between]).train(training)
    with gmmcnn.masked(model, {"conv": [1, 3]}):
        maps = model(IMAGES)
    assert (maps[:, [1, 3]] == 0).all()
    assert (maps[:, [0, 2]] != 0).any(dim=3).all()
    maps.sum().backward()
    assert (model.conv.weight.grad[[1, 3]] == 0).all()


def test_what_cannot_be_followed_is_refused():
    model = Between(lambda net, x: torch.cos(net.conv(x)))
    with gmmcnn.masked(model, {"conv": [1]}), pytest.raises(ModelError, match=r"cos\(\) makes something of a masked"):
        model(IMAGES)


def test_masks_within_masks_add_up():
    model = Shifted(nn.Sigmoid()).eval()
    with gmmcnn.masked(model, {"conv": [1]}), gmmcnn.masked(model, {"conv": [0]}), torch.no_grad():
        maps = model.features(IMAGES)
    assert (maps[:, [0, 1]] == 0).all()
    assert (maps[:, [2, 3]] != 0).any()


def test_nothing_is_followed_outside_the_block():
    model = Shifted(nn.Sigmoid()).eval()
    with gmmcnn.masked(model, {"conv": [0]}), torch.no_grad():
        maps = model.features(IMAGES)
    assert (torch.sigmoid(maps)[:, 0] == 0.5).all()


def test_compiled_modules_are_masked_too():
    model = Shifted(nn.Sigmoid()).eval()
    model.norm = torch.compile(model.norm, backend="eager")
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        compiled(IMAGES)
        with gmmcnn.masked(model, {"conv": [0]}):
            expected = model(IMAGES)
        with gmmcnn.masked(compiled, {"conv": [0]}) as same:
            assert same is compiled
            torch.testing.assert_close(compiled(IMAGES), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ({"conv9": [0]}, "'conv9' is not a convolution of this model; it has conv, head"),
        ({"norm": [0]}, "'norm' is not a convolution"),
        ({"conv": [4]}, "layer 'conv' has no filter 4; expected 0 to 3"),
        ({"conv": [-1]}, "layer 'conv' has no filter -1"),
    ],
)
def test_a_mask_that_does_not_fit_is_named(mask, message):
    model = Shifted(nn.ReLU())
    with pytest.raises(ModelError, match=message), gmmcnn.masked(model, mask):
        pass
    assert not any(module._forward_hooks for module in model.modules())


FILTERS = {
    "list": [1, 3],
    "tuple": (3, 1),
    "set": {1, 3},
    "range": range(1, 4, 2),
    "generator": lambda: (i for i in (1, 3)),
    "filter": lambda: filter(None, [1, 3]),
    "tensor": torch.tensor([3, 1]),
    "tensor, uint8": torch.tensor([3, 1], dtype=torch.uint8),
    "truth values": torch.tensor([False, True, False, True]),
    "list of truth values": [False, True, False, True],
    "array": np.array([1, 3, 3]),
    "array of truth values": np.array([False, True, False, True]),
    "series": pd.Series([1, 3]),
    "tensors": [torch.tensor(1), np.int64(3)],
}


@pytest.mark.parametrize("name", FILTERS)
def test_filters_are_named_by_whatever_holds_whole_numbers_or_truth_values(name, tmp_path):
    def given():
        return filters() if callable(filters := FILTERS[name]) else filters

    model = Shifted(nn.Sigmoid()).eval()
    with gmmcnn.masked(model, {"conv": given()}), torch.no_grad():
        maps = model.features(IMAGES)
    assert [f for f in range(4) if not maps[:, f].any()] == [1, 3]
    save_mask(tmp_path / "mask.json", {"conv": given()})
    assert load_mask(tmp_path / "mask.json") == {"conv": [1, 3]}


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ({"conv": [0.0, 1.0]}, r"layer 'conv': filters have shape \(2,\) and type float64; expected whole numbers"),
        ({"conv": torch.tensor([1.0])}, "type float32"),
        ({"conv": 3}, "layer 'conv': filters are 3; expected whole numbers"),
        ({"conv": "03"}, "filters are '03'"),
        ({"conv": torch.tensor(3)}, "filters have shape|cannot be read|filters are"),
        ({"conv": [[0], [1]]}, r"filters have shape \(2, 1\)"),
        ({"conv": [0, None]}, "type object"),
        ({"conv": [True, False]}, "2 truth values; expected 4, one for each filter"),
        ({"conv": torch.ones(5, dtype=torch.bool)}, "5 truth values; expected 4"),
        ({0: [0]}, "layer 0 is no name"),
        ([("conv", [0])], "a mask is a list; expected a mapping"),
        (None, "a mask is a NoneType"),
    ],
)
def test_what_names_no_filters_is_refused(mask, message):
    model = Shifted(nn.ReLU())
    with pytest.raises(ModelError, match=message), gmmcnn.masked(model, mask):
        pass


class UsedByItsWeight(Shifted):
    def features(self, images):
        return self.act(self.norm(F.conv2d(images, self.conv.weight, self.conv.bias)))


def test_a_mask_without_effect_is_an_error_at_the_end_of_the_block():
    model = UsedByItsWeight(nn.ReLU()).eval()

    def run():
        with gmmcnn.masked(model, {"conv": [0], "head": [1]}), torch.no_grad():
            model(IMAGES)

    with pytest.raises(ModelError, match="masked without effect: conv was never called as a module"):
        run()
    with gmmcnn.masked(model, {"conv": []}), torch.no_grad():
        model(IMAGES)


@pytest.mark.filterwarnings("ignore:.*Lazy modules:UserWarning", "ignore:.*script.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3))), "scripted module"),
        (lambda: nn.Sequential(nn.LazyConv2d(4, 3)), r"0\.weight has no size yet"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, device="meta")), r"0\.weight is on the meta device"),
        (lambda: nn.Conv2d(3, 4, 3).state_dict(), "the model is a OrderedDict; expected a torch.nn.Module; load it"),
    ],
)
def test_a_model_that_hooks_do_not_reach_is_refused(make, message):
    with pytest.raises(ModelError, match=message), gmmcnn.masked(make(), {"0": [1]}):
        pass


def test_masks_are_small_files(tmp_path):
    path = tmp_path / "mask.json"
    save_mask(path, {"conv": [3, 1]})
    assert load_mask(path) == {"conv": [1, 3]}
    assert path.stat().st_size < 200
    with gmmcnn.masked(Shifted(nn.ReLU()).eval(), path) as model, torch.no_grad():
        assert (model.features(IMAGES)[:, [1, 3]] == 0).all()


@pytest.mark.parametrize("content", ["{}", "[1]", "not json", '{"format": "gmmcnn-mask-1", "layers": [1]}'])
def test_a_file_that_is_no_mask(tmp_path, content):
    (tmp_path / "mask.json").write_text(content)
    with pytest.raises(ModelError, match=r"mask\.json: not a mask"):
        load_mask(tmp_path / "mask.json")


def test_a_mask_that_is_not_there():
    with pytest.raises(ModelError, match=r"nope\.json: No such file or directory; expected the file of a mask"):
        gmmcnn.masked(Shifted(nn.ReLU()), "nope.json").__enter__()


def test_random_masks_take_as_many_live_filters_from_each_layer():
    mask, live = {"a": [0, 1], "b": [5]}, {"a": [0, 1, 2, 3], "b": [4, 5], "c": [1]}
    masks = random_masks(mask, live, n_masks=50, seed=0)
    assert all(set(m) == {"a", "b"} for m in masks)
    assert all(len(set(m["a"])) == 2 and set(m["a"]) <= set(live["a"]) and len(m["b"]) == 1 for m in masks)
    assert {tuple(m["a"]) for m in masks} == {(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)}
    assert masks == random_masks(mask, live, n_masks=50, seed=0)
    assert masks != random_masks(mask, live, n_masks=50, seed=1)


def test_masks_are_compared_with_the_whole_model_and_with_controls():
    model = Shifted(nn.ReLU()).eval()

    def evaluate(model):
        with torch.no_grad():
            return {"zero_channels": float((model.features(IMAGES).abs().sum(dim=(0, 2, 3)) == 0).sum())}

    table = compare_masks(model, {"conv": [0, 1]}, [{"conv": [1, 2]}, {"conv": [2, 3]}], evaluate)
    assert table["mask"].tolist() == ["none", "anomalous", "random", "random"]
    assert table["control"].tolist() == [0, 0, 0, 1]
    assert table["n_filters"].tolist() == [0, 2, 2, 2]
    alive = table["zero_channels"][0]
    assert (table["zero_channels"][1:] >= 2).all()
    assert alive < 2


def test_masks_are_evaluated_one_by_one_and_leave_the_model_as_it_is():
    model = Shifted(nn.ReLU()).eval()

    def evaluate(model):
        with torch.no_grad():
            return {"total": float(model.features(IMAGES).sum())}

    whole = evaluate(model)
    rows = evaluate_masks(model, [("chosen", 3, {"conv": [0, 1]}), ("none", 0, {})], evaluate)
    first = next(rows)
    assert first.pop("total") != whole["total"]
    assert first == {"mask": "chosen", "number": 3, "n_filters": 2}
    assert evaluate(model) == whole  # between two masks too
    assert list(rows) == [{"mask": "none", "number": 0, "n_filters": 0} | whole]


def test_a_masked_channel_that_is_spread_over_something_else_leaves_that_as_it_is():
    """Pooled to one pixel and added to values of a place: neither summand has the shape of the sum."""

    class Placed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 3, 3)
            self.places = nn.Parameter(torch.arange(48.0).reshape(1, 3, 4, 4))

        def forward(self, images):
            return torch.relu(F.adaptive_avg_pool2d(self.conv(images), 1) + self.places)

    model = Placed()
    with gmmcnn.masked(model, {"conv": [0]}), torch.no_grad():
        found = model(torch.randn(2, 1, 8, 8))
    assert torch.equal(found[:, 0], model.places[:, 0].detach().expand(2, 4, 4))
