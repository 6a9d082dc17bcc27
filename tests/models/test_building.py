from pathlib import Path

import pytest
import torch
from torch import nn

from gmmcnn import config
from gmmcnn.errors import ConfigurationError, ModelError
from gmmcnn.models import BUILT_IN, build

DATA_SETS = {
    "digits": (1, (8, 8), 10),
    "fashion_mnist": (1, (28, 28), 10),
    "cifar10": (3, (32, 32), 10),
    "cifar100": (3, (32, 32), 100),
}
N_CONVOLUTIONS = {"simple_cnn": 3, "lenet5": 2, "alexnet": 5, "resnet8": 7, "resnet20": 19}

MODULE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, n_out=10):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, n_out)
    def forward(self, images):
        return self.head(self.norm(self.conv(images)).mean(dim=(2, 3)))

def factory(n_out):
    return Net(n_out)

def not_a_module():
    return 3

def failing():
    raise RuntimeError("no weights\\nhere")
"""


@pytest.fixture
def my_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_models.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))


def build_for(data: str, name: str, seed: int = 0, **kwargs: object) -> nn.Module:
    in_channels, image_size, n_classes = DATA_SETS[data]
    settings = config.Model(name=name, kwargs=kwargs)
    return build(settings, in_channels=in_channels, image_size=image_size, n_classes=n_classes, seed=seed)


@pytest.mark.parametrize("data", DATA_SETS)
@pytest.mark.parametrize("name", BUILT_IN)
def test_every_network_suits_every_data_set(name: str, data: str) -> None:
    in_channels, image_size, n_classes = DATA_SETS[data]

    model = build_for(data, name)

    assert model.training
    logits = model(torch.rand(3, in_channels, *image_size))
    assert logits.shape == (3, n_classes)
    assert logits.isfinite().all()
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == N_CONVOLUTIONS[name]


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_weight_gets_a_gradient(name: str) -> None:
    model = build_for("cifar10", name)
    model(torch.rand(4, 3, 32, 32)).square().sum().backward()
    without = [key for key, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert without == []


@pytest.mark.parametrize(
    ("data", "name", "n_weights"),
    [
        ("fashion_mnist", "lenet5", 61_706),  # LeNet-5 with a fully connected second convolution, as in textbooks
        ("cifar10", "resnet20", 269_722),  # 0.27 million in table 6 of the publication
    ],
)
def test_known_numbers_of_weights(data: str, name: str, n_weights: int) -> None:
    assert sum(weight.numel() for weight in build_for(data, name).parameters()) == n_weights


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_seed_alone_decides_the_weights(name: str) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build_for("digits", name, seed=3).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    again, other = build_for("digits", name, seed=3).state_dict(), build_for("digits", name, seed=4).state_dict()

    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(next(iter(first.values())), next(iter(other.values())))


@pytest.mark.parametrize("name", [name for name in BUILT_IN if name.startswith("resnet")])
def test_trying_a_network_leaves_batch_norm_alone(name: str) -> None:
    for module in build_for("digits", name).modules():
        if isinstance(module, nn.BatchNorm2d):
            assert int(module.num_batches_tracked) == 0
            assert not module.running_mean.any()


def test_kwargs_reach_the_network() -> None:
    model = build_for("digits", "simple_cnn", widths=[4, 5, 6])
    assert [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)] == [4, 5, 6]
    dropouts = [m.p for m in build_for("digits", "alexnet", dropout=0.0).modules() if isinstance(m, nn.Dropout)]
    assert dropouts == [0.0, 0.0]


@pytest.mark.parametrize(
    ("name", "nearest"), [("lenet", "lenet5"), ("resnet-8", "resnet8"), ("simplecnn", "simple_cnn")]
)
def test_a_misspelt_name_meets_the_nearest_one(name: str, nearest: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"model\.name={name}: expected alexnet.*; did you mean {nearest}\?"):
        build_for("digits", name)


def test_an_unknown_argument_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"model\.kwargs: .*'depth'; AlexNet accepts .*dropout"):
        build_for("digits", "alexnet", depth=3)


@pytest.mark.parametrize(("name", "smallest"), [("alexnet", "8 × 8"), ("simple_cnn", "8 × 8"), ("lenet5", "4 × 4")])
def test_images_that_are_too_small(name: str, smallest: str) -> None:
    with pytest.raises(ModelError, match=rf"{name}: images of 3 × 30 pixels; expected at least {smallest}"):
        build(config.Model(name=name), in_channels=1, image_size=(3, 30), n_classes=10, seed=0)


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("image_size", [(8, 8), (9, 17), (31, 12), (65, 64)])
def test_images_need_not_be_square(name: str, image_size: tuple[int, int]) -> None:
    model = build(config.Model(name=name), in_channels=2, image_size=image_size, n_classes=3, seed=0)
    assert model(torch.rand(2, 2, *image_size)).shape == (2, 3)


@pytest.mark.parametrize("name", ["my_models:Net", "my_models.Net", "my_models.factory"])
def test_a_network_by_dotted_name(my_models: None, name: str) -> None:
    first, again = (build_for("digits", name, n_out=10).state_dict() for _ in range(2))
    assert torch.equal(first["conv.weight"], again["conv.weight"])


@pytest.mark.parametrize(
    ("name", "kwargs", "error", "message"),
    [
        ("my_models:Net", {"n_out": 7}, ModelError, r"maps 2 images to \(2, 7\); expected logits of shape \(2, 10\)"),
        ("my_models:Net", {"n_in": 7}, ConfigurationError, r"model\.kwargs: .*'n_in'; Net accepts n_out"),
        ("my_models:Ned", {}, ConfigurationError, r"no class or function 'Ned'; did you mean Net\?"),
        ("my_modells:Net", {}, ConfigurationError, r"cannot import 'my_modells' \(No module named 'my_modells'\)"),
        ("my_models:not_a_module", {}, ModelError, r"returned a int; expected a torch\.nn\.Module"),
        ("my_models:failing", {}, ModelError, r"cannot be built with \{\} \(no weights here\)"),
    ],
)
def test_a_dotted_name_that_does_not_work(
    my_models: None, name: str, kwargs: dict[str, int], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        build_for("digits", name, **kwargs)


def test_a_network_for_other_images(my_models: None) -> None:
    with pytest.raises(ModelError, match=r"my_models:Net: fails on images of shape \(3, 32, 32\) \(.*channels"):
        build_for("cifar10", "my_models:Net")
