"""The smaller network's files: torch alone reads them, and they compute what the masked network does."""

import subprocess
import sys

import pytest
import torch
from conftest import build_for
from torch import nn

import gmmcnn
from gmmcnn.models.training import evaluate
from gmmcnn.pruning import smaller
from gmmcnn.pruning.structural import Removal, remove_filters

# What the module's docstring tells a reader to do with ``pruned.pt``.
LOADING = smaller.__doc__.partition("own class::\n")[2]


def made_smaller(name: str, digits) -> tuple[nn.Module, dict[str, list[int]], Removal, torch.Tensor]:
    network = build_for(name, digits).eval()
    layers = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    mask = {layers[0]: [0, 2], layers[1]: [1]}
    example = digits.validation.images[:1]
    return network, mask, remove_filters(network, mask, example), example


@pytest.mark.parametrize("name", ["lenet5", "resnet8"])
def test_the_network_is_read_by_torch_alone_and_computes_what_the_masked_one_does(digits, tmp_path, monkeypatch, name):
    network, mask, removal, example = made_smaller(name, digits)
    assert smaller.save(tmp_path, network, removal, example) is None
    images = digits.validation.images[:9]
    with torch.no_grad(), gmmcnn.masked(network, mask):
        expected = network(images)

    torch.save(images, tmp_path / "images.pt")
    script = (
        "import sys, torch\n"
        "network = torch.export.load('pruned.pt2').module()\n"
        "torch.save(network(torch.load('images.pt')), 'logits.pt')\n"
        "assert not [name for name in sys.modules if name.partition('.')[0] == 'gmmcnn']\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected, rtol=1e-5, atol=1e-5)

    monkeypatch.chdir(tmp_path)
    fresh = build_for(name, digits).eval()
    exec(smaller_text(), {"torch": torch, "nn": nn, "network": fresh})
    with torch.no_grad():
        torch.testing.assert_close(fresh(images), expected, rtol=1e-5, atol=1e-5)


def smaller_text() -> str:
    return "\n".join(line[4:] for line in LOADING.splitlines())


def test_size_cost_and_accuracy_before_and_after(digits):
    network, mask, removal, example = made_smaller("lenet5", digits)
    images, labels = digits.validation.images, digits.validation.labels
    sizes = smaller.compare(
        network, removal, example, lambda n: {"validation_accuracy": evaluate(n, images, labels)[1]}
    )
    before, after = sizes.to_dict("records")
    assert (before["filters"], after["filters"]) == (22, 19)
    assert before["parameters"] == sum(p.numel() for p in network.parameters())
    assert after["parameters"] < before["parameters"]
    assert after["bytes"] == 4 * after["parameters"]
    assert after["flops"] < before["flops"]
    with gmmcnn.masked(network, mask):
        assert after["validation_accuracy"] == pytest.approx(evaluate(network, images, labels)[1])
    assert smaller.sentence(sizes, removal).startswith("Removed 3 of 22 filters: ")


def test_operations_are_two_for_each_multiplication_and_addition():
    network = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False)).eval()
    assert smaller._flops(network, torch.zeros(1, 3, 5, 5)) == 2 * 9 * (3 * 3 * 3) * 4


class Undecided(nn.Module):
    """A forward pass that depends on what its images hold, which no exporter follows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.conv(images)
        return maps.mean((2, 3)) if float(images.sum()) > 0 else maps.amax((2, 3))


def test_of_a_network_that_cannot_be_exported_the_weights_and_the_plan_are_written(tmp_path):
    network, example = Undecided().eval(), torch.rand(1, 1, 8, 8)
    (tmp_path / "pruned.pt2").touch()
    silenced = Removal(network, {}, {"conv": [0]})
    assert smaller.save(tmp_path, network, silenced, example)
    assert not (tmp_path / "pruned.pt2").exists(), "that of another mask"
    saved = torch.load(tmp_path / "pruned.pt", weights_only=True)
    assert saved["plan"] == {"removed": {}, "silenced": {"conv": [0]}, "sizes": {}}
