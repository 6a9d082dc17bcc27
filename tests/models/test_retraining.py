"""Weights that were lost or damaged: found, and made again bit by bit."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from gmmcnn import config
from gmmcnn.data import Images, Splits
from gmmcnn.errors import ModelError, StoreError, TrainingError
from gmmcnn.files import DIGESTS, read_digests, require_as_recorded
from gmmcnn.models import read_state, retraining
from gmmcnn.models.training import train

SETTINGS = config.Train(epochs=4, checkpoint_epochs=[1, 3, 4], optimizer="sgd", learning_rate=0.05)
FILES = ["best.pt", "epoch-0001.pt", "epoch-0003.pt", "epoch-0004.pt", "last.pt", "metrics.csv"]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10))


@pytest.fixture(scope="module")
def images(digits: Splits) -> Splits:
    few = Images(digits.train.images[:64], digits.train.labels[:64])
    return replace(digits, train=few, validation=few)


@pytest.fixture(scope="module")
def _trained(images: Splits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "checkpoints"
    train(network(), images, SETTINGS, folder, seed=0)
    return folder


@pytest.fixture
def trained(_trained: Path, tmp_path: Path) -> Path:
    """Folder of a training, to be spoilt."""
    return shutil.copytree(_trained, tmp_path / "checkpoints")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def flip(path: Path, at: float) -> None:
    """Change one bit, at a share of the file's length."""
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 4
    path.write_bytes(content)


def test_a_training_records_what_its_files_hold(trained: Path) -> None:
    assert sorted(read_digests(trained) or {}) == FILES
    assert retraining.problems(trained) == {}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [0.1, 0.5, 0.9, "cut", "empty", "zeros", "gone"])
def test_whatever_is_damaged_is_found(trained: Path, images: Splits, name: str, damage: float | str) -> None:
    path = trained / name
    content = path.read_bytes()
    if isinstance(damage, float):
        flip(path, damage)
    elif damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"cut": content[:-9], "empty": b"", "zeros": bytes(len(content))}[damage])
    assert list(retraining.problems(trained)) == [name]
    if name.startswith(("epoch", "best")):
        with pytest.raises(ModelError, match=name):
            read_state(path)
        with pytest.raises(TrainingError, match=rf"{name}: (damaged|missing) .*gmmcnn task=repair"):
            train(network(), images, SETTINGS, trained, seed=0)


@pytest.mark.parametrize(
    "spoilt",
    [["epoch-0001.pt"], ["best.pt"], ["epoch-0003.pt", "best.pt"], ["last.pt"], ["metrics.csv"], [DIGESTS], FILES],
    ids=" ".join,
)
def test_what_is_spoilt_is_made_again_bit_by_bit(trained: Path, images: Splits, spoilt: list[str]) -> None:
    before = contents(trained)
    for name in spoilt:
        flip(trained / name, 0.5)
    assert sorted(retraining.again(network(), images, SETTINGS, trained, seed=0)) == sorted(spoilt)
    assert contents(trained) == before
    assert [path.name for path in trained.parent.iterdir()] == ["checkpoints"]
    assert retraining.again(network(), images, SETTINGS, trained, seed=0) == []


def test_where_training_leads_elsewhere_everything_stays_as_it_was(trained: Path, images: Splits, monkeypatch) -> None:
    flip(trained / "epoch-0003.pt", 0.5)
    before = contents(trained)
    monkeypatch.setattr("gmmcnn.models.training._epoch_seed", lambda seed, epoch: epoch)
    with pytest.raises(TrainingError, match=r"epoch-000\d\.pt: trained again, its weights are not bit by bit"):
        retraining.again(network(), images, SETTINGS, trained, seed=0)
    assert contents(trained) == before
    with pytest.raises(TrainingError, match=r"was trained with train\.learning_rate"):
        retraining.again(network(), images, replace(SETTINGS, learning_rate=0.1), trained, seed=0)
    assert contents(trained) == before


def test_files_exchanged_with_each_other_are_found(trained: Path) -> None:
    one, other = trained / "epoch-0001.pt", trained / "epoch-0003.pt"
    first = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(first)
    assert retraining.problems(trained) == {"epoch-0001.pt": "damaged", "epoch-0003.pt": "damaged"}
    with pytest.raises(StoreError, match=r"epoch-0001\.pt: damaged, its SHA-256 is not the one recorded"):
        require_as_recorded(one)


def test_weights_of_a_version_that_recorded_nothing_are_read(trained: Path) -> None:
    state = torch.load(trained / "last.pt", weights_only=True)
    del state["digests"]
    torch.save(state, trained / "last.pt")
    (trained / DIGESTS).unlink()
    assert retraining.problems(trained) == {}
    assert read_state(trained / "best.pt")
    flip(trained / "epoch-0001.pt", 0.6)
    assert retraining.problems(trained) == {"epoch-0001.pt": "damaged"}


@pytest.mark.parametrize("promoted", [True, False])
def test_killed_around_new_best_weights_training_goes_on(trained: Path, images: Splits, *, promoted: bool) -> None:
    before = contents(trained)
    waiting = trained / "best.pt.next"
    if promoted:  # last.pt spoke of them already
        (trained / "best.pt").rename(waiting)
    else:
        shutil.copy(trained / "epoch-0001.pt", waiting)
    train(network(), images, SETTINGS, trained, seed=0)
    assert contents(trained) == before
