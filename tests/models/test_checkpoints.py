import os
import pickle
import traceback
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gmmcnn import files
from gmmcnn.errors import ModelError
from gmmcnn.models import load_checkpoint, read_state

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


# ------------------------------------------------------------------------------------------------- other people's files


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{key}": value for key, value in state.items()}


OTHERS = {"criterion.weight": torch.ones(3), "train_accuracy.n": torch.tensor(5)}
LIGHTNING = {"epoch": 3, "global_step": 7, "pytorch-lightning_version": "2.5", "optimizer_states": [{"state": {}}]}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: LIGHTNING | {"state_dict": prefixed(s, "model.")},
        lambda s: LIGHTNING | {"state_dict": prefixed(s, "net.") | OTHERS},
        lambda s: LIGHTNING | {"state_dict": prefixed(s, "model._orig_mod.") | OTHERS},
        lambda s: LIGHTNING | {"state_dict": prefixed(s, "model.module.backbone.")},
        lambda s: {"model": {"state_dict": prefixed(s, "network.")}},
        lambda s: {"module": s},
        lambda s: prefixed(s, "_orig_mod.module."),
        lambda s: {key.replace("0.", "0._orig_mod."): value for key, value in s.items()},
    ],
)
def test_weights_of_a_part_of_what_was_saved_are_found(tmp_path: Path, wrap: Callable[[State], object]) -> None:
    source, target = network(), network()
    torch.save(wrap(source.state_dict()), tmp_path / "model.ckpt")
    load_checkpoint(target, tmp_path / "model.ckpt")
    expected = source.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in target.state_dict().items())


def test_a_compiled_model_takes_the_weights_of_a_plain_one(tmp_path: Path) -> None:
    source, target = network(), network()
    torch.save(source.state_dict(), tmp_path / "model.pt")
    load_checkpoint(torch.compile(target, backend="eager"), tmp_path / "model.pt")
    assert torch.equal(target[0].weight, source[0].weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: {"state_dict": prefixed(s, "model.") | prefixed(s, "ema.")},
            r"fit the model under 'ema\.', 'model\.'; expected one of them: save the state dict of the network that",
        ),
        (
            lambda s: {"state_dict": without(prefixed(s, "model."), "model.0.bias")},
            r"does not fit the model under 'model\.'; missing: 0\.bias; check",
        ),
        (
            lambda s: {"state_dict": prefixed(s, "model.") | {"model.9.bias": s["0.bias"]}},
            r"does not fit the model under 'model\.'; unexpected: 9\.bias; check",
        ),
        (
            lambda s: prefixed(s, "net.") | {"net.3.bias": torch.zeros(5)},
            r"under 'net\.'; of another shape: 3\.bias \(5,\) instead of \(2,\)",
        ),
        (lambda s: {1: s["0.bias"]}, r"missing: 0\.weight.*; unexpected: 1;"),
    ],
)
def test_what_fits_nowhere_or_twice_is_told_and_changes_nothing(
    tmp_path: Path, change: Callable[[State], object], message: str
) -> None:
    test_what_does_not_fit_is_named_and_changes_nothing(tmp_path, change, message)


def more_than_tensors() -> dict[str, Callable[[Path], None]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(network())
    return {
        "a whole model": lambda path: torch.save(network(), path),
        "TorchScript": lambda path: torch.jit.save(scripted, path),
        "settings of a class": lambda path: torch.save({"state_dict": {}, "hyper_parameters": Path()}, path),
        "text": lambda path: path.write_text("weights"),
        "a pickle": lambda path: path.write_bytes(pickle.dumps({"a": Path()})),
        "a zip": lambda path: zipfile.ZipFile(path, "w").writestr("a", "b"),
        "a folder within": lambda path: path.mkdir(),
    }


@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore::ResourceWarning")
@pytest.mark.parametrize("kind", list(more_than_tensors()))
def test_no_message_advises_to_load_with_less_care(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.pt"
    more_than_tensors()[kind](path)
    with pytest.raises(ModelError, match=r"model\.pt: ") as caught:
        load_checkpoint(network(), path)
    assert "weights_only" not in "".join(traceback.format_exception(caught.value)).replace("weights_only=True", "")
    assert len(str(caught.value)) < 700


@given(st.data())
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_byte_is_told_or_changes_no_weight(tmp_path_factory: pytest.TempPathFactory, data) -> None:
    path = tmp_path_factory.mktemp("flip") / "model.pt"
    torch.manual_seed(0)
    source = network()
    torch.save(source.state_dict(), path)
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    target = network()
    try:
        load_checkpoint(target, path)
    except ModelError:
        return
    expected = source.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in target.state_dict().items())


def test_a_lazy_layer_takes_the_shape_of_its_weights(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "model.pt")
    lazy = nn.Sequential(nn.LazyConv2d(4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2))
    load_checkpoint(lazy, tmp_path / "model.pt")
    assert lazy[0].weight.shape == (4, 1, 3, 3)


def test_weights_that_would_fill_the_memory_are_refused_unread(tmp_path, monkeypatch):
    torch.save({"weight": torch.zeros(2**20)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "bomb.pt", "w") as bomb:
        for part in plain.namelist():
            bomb.writestr(part, plain.read(part), zipfile.ZIP_DEFLATED)
    monkeypatch.setattr(files, "LARGEST_OF_SMALL", 2**20)
    monkeypatch.setattr(torch, "load", lambda *given, **options: pytest.fail("read"))
    with pytest.raises(ModelError, match=r"bomb.pt: not a readable checkpoint .*packed into"):
        read_state(tmp_path / "bomb.pt")
