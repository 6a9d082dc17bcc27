"""State dicts from files, with nothing unpickled but tensors."""

import pickle
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gmmcnn.errors import ModelError, StoreError, one_line
from gmmcnn.files import require_as_recorded, require_no_bomb

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "module", "weights")
_COMPILED = "_orig_mod."
"""What ``torch.compile`` puts into the names of a module's parameters, in front or further in."""
_N_NAMED = 3


def load_checkpoint(model: nn.Module, path: Path | str) -> None:
    """Load a state dict into a model.

    The file holds a state dict, or a dictionary with one under ``state_dict`` or the like, as Lightning writes it. The
    network's weights may be those of a part of what was saved: where all of them stand under one prefix, such as
    ``module.``, ``model.`` or ``net.``, they are taken from there, and what stands beside it is not looked at. The file
    is read by torch's loader of tensors, which runs no code, and its checksums are checked: those within it, and the
    SHA-256 that a training has recorded beside it.

    Raises
    ------
    ModelError
        The file is missing, damaged, holds more than tensors, does not fit the model, or fits it under several
        prefixes; the model is then unchanged.
    """
    load_state(model, read_state(path), path)


def read_state(path: Path | str) -> dict[str, Tensor]:
    """Read the state dict that :func:`load_checkpoint` would load. ModelError as there, whatever the model."""
    return {str(key).replace(_COMPILED, ""): value for key, value in _unwrapped(_read(Path(path)), path).items()}


def load_state(model: nn.Module, state: Mapping[str, Tensor], path: Path | str) -> None:
    """Load a state dict that was read from ``path``. ModelError if it does not fit; the model is then unchanged."""
    expected = {key.replace(_COMPILED, ""): (key, value) for key, value in model.state_dict().items()}
    wanted = {name: value for name, (_, value) in expected.items()}
    prefix = _prefix(state, wanted, path)
    own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    _check_fit(wanted, own, prefix, path)
    try:
        model.load_state_dict({key: own[name] for name, (key, _) in expected.items()})
    except Exception as error:  # noqa: BLE001 - a module may have its own way to load
        raise ModelError(f"{path}: does not fit the model ({_reason(error)}); check model.name") from None


def _read(path: Path) -> object:
    if not path.is_file():
        raise ModelError(f"{path}: no such checkpoint; expected a file written by torch.save(model.state_dict(), path)")
    try:
        require_as_recorded(path)
        require_no_bomb(path)
        damaged = damaged_part(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a TorchScript file is refused below, in our own words
            content = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except StoreError as error:
        raise ModelError(str(error)) from None
    except pickle.UnpicklingError:
        raise ModelError(
            f"{path}: damaged, or holds more than tensors, which is not loaded; save model.state_dict() alone"
        ) from None
    except Exception as error:  # noqa: BLE001 - torch's reader raises whatever it stumbles on
        raise ModelError(f"{path}: not a readable checkpoint ({_reason(error)}); write it again") from None
    if damaged:
        raise ModelError(f"{path}: damaged, its part {damaged} has another checksum; write it again")
    return content


def damaged_part(path: Path) -> str | None:
    """Name of the first part of a file of torch's whose checksum is wrong, which torch itself does not look at."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as parts:
        return parts.testzip()


def _reason(error: Exception) -> str:
    """Message of torch's, but for its advice to load the file without care."""
    text = one_line(error)
    return "it holds more than tensors: save model.state_dict() alone" if "weights_only" in text else text


def _unwrapped(content: object, path: Path | str) -> Mapping[Any, Any]:
    """The innermost dictionary under one of the usual names."""
    found = content
    while isinstance(found, Mapping) and any(isinstance(found.get(key), Mapping) for key in _WRAPPERS):
        found = next(found[key] for key in _WRAPPERS if isinstance(found.get(key), Mapping))
    if not isinstance(found, Mapping) or not found:
        raise ModelError(f"{path}: holds a {type(found).__name__}; expected a state dict: save model.state_dict()")
    return found


def _prefix(saved: Mapping[str, Any], wanted: Mapping[str, Any], path: Path | str) -> str:
    """What stands before the names of all the network's weights; of prefixes that do not fit, the nearest."""
    places = {name.removesuffix(key) for key in wanted for name in saved if f".{name}".endswith(f".{key}")} | {""}
    n_found = {
        place: sum(place + key in saved and _fits(saved[place + key], wanted[key]) for key in wanted)
        for place in sorted(places)
    }
    whole = [place for place, n in n_found.items() if n == len(wanted)]
    if "" in whole or not whole:
        return max(n_found, key=lambda place: n_found[place])
    if len(whole) > 1:
        raise ModelError(
            f"{path}: holds weights that fit the model under {_first([repr(place) for place in whole])}; expected one "
            "of them: save the state dict of the network that is meant"
        )
    return whole[0]


def _check_fit(wanted: Mapping[str, Any], state: Mapping[str, Any], prefix: str, path: Path | str) -> None:
    """Raise ModelError unless the state has the model's keys, with tensors of the model's shapes."""
    problems = {
        "missing": [key for key in wanted if key not in state],
        "unexpected": [key for key in state if key not in wanted],
        "of another shape": [
            f"{key} {_shape(state[key])} instead of {_shape(value)}"
            for key, value in wanted.items()
            if key in state and not _fits(state[key], value)
        ],
    }
    named = [f"{kind}: {_first(keys)}" for kind, keys in problems.items() if keys]
    if named:
        under = f" under {prefix!r}" if prefix else ""
        raise ModelError(
            f"{path}: does not fit the model{under}; {'; '.join(named)}; check model.name and model.kwargs"
        )


def _fits(value: Any, expected: Any) -> bool:
    """Whether a saved value can stand for a model's, which has no shape yet where its layer is lazy."""
    return is_lazy(expected) or _shape(value) == _shape(expected)


def _shape(value: object) -> tuple[int, ...] | str:
    return tuple(value.shape) if isinstance(value, Tensor) and not is_lazy(value) else type(value).__name__


def _first(keys: Iterable[str]) -> str:
    keys = list(keys)
    more = f" and {len(keys) - _N_NAMED} more" if len(keys) > _N_NAMED else ""
    return ", ".join(keys[:_N_NAMED]) + more
