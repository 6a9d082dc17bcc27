import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gmmcnn.errors import ModelError
from gmmcnn.models import load_checkpoint

State = dict[str, Tensor]


def network(width: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(width, 2))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model_state_dict": state},
        lambda state: {"model": state, "optimizer": {"lr": 0.1}},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"model": {f"_orig_mod.{key}": value for key, value in state.items()}},
    ],
)
def test_the_usual_wrappings_are_taken_off(tmp_path: Path, wrap: Callable[[State], object]) -> None:
    source, target = network(), network()
    torch.save(wrap(source.state_dict()), tmp_path / "model.pt")

    load_checkpoint(target, tmp_path / "model.pt")

    expected = source.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in target.state_dict().items())


def without(state: State, *keys: str) -> State:
    return {key: value for key, value in state.items() if key not in keys}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "0.weight"), r"missing: 0\.weight; check model\.name"),
        (lambda s: s | {"9.bias": s["0.bias"]}, r"unexpected: 9\.bias; check"),
        (lambda s: s | {"3.bias": torch.zeros(5)}, r"of another shape: 3\.bias \(5,\) instead of \(2,\)"),
        (lambda s: s | {"3.bias": "text"}, r"of another shape: 3\.bias str instead of \(2,\)"),
        (lambda s: {"a": s["0.bias"]}, r"missing: 0\.weight, 0\.bias, 1\.weight and 6 more; unexpected: a;"),
        (lambda s: [s], r"holds a list; expected a state dict"),
        (lambda s: {}, r"holds a dict; expected a state dict"),
        (lambda s: s["0.bias"], r"holds a Tensor; expected a state dict"),
    ],
)
def test_what_does_not_fit_is_named_and_changes_nothing(
    tmp_path: Path, change: Callable[[State], object], message: str
) -> None:
    model, path = network(), tmp_path / "model.pt"
    before = {key: value.clone() for key, value in model.state_dict().items()}
    torch.save(change(network().state_dict()), path)

    with pytest.raises(ModelError, match=message) as caught:
        load_checkpoint(model, path)

    assert str(path) in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class Payload:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return os.mkdir, (self.folder,)


def test_code_in_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    torch.save({"model": Payload(tmp_path / "made_by_the_payload")}, tmp_path / "model.pt")
    with pytest.raises(ModelError, match=r"model\.pt: damaged, or holds more than tensors.*save model\.state_dict"):
        load_checkpoint(network(), tmp_path / "model.pt")
    assert not (tmp_path / "made_by_the_payload").exists()


@pytest.mark.parametrize("n_bytes", [0, 3, 100, -40])
def test_a_truncated_file(tmp_path: Path, n_bytes: int) -> None:
    path = tmp_path / "model.pt"
    torch.save(network().state_dict(), path)
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.raises(ModelError, match=r"model\.pt: (damaged|not a readable checkpoint)"):
        load_checkpoint(network(), path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nothing\.pt: no such checkpoint"):
        load_checkpoint(network(), tmp_path / "nothing.pt")
