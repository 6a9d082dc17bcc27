"""State dicts from files, with nothing unpickled but tensors."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from gmmcnn.errors import ModelError, one_line

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and torch.compile
_N_NAMED = 3


def load_checkpoint(model: nn.Module, path: Path | str) -> None:
    """Load a state dict into a model.

    The file holds a state dict, or a dictionary with one under ``state_dict``, ``model_state_dict`` or ``model``;
    prefixes that ``DataParallel`` and ``torch.compile`` give to all keys are taken off. It is read with
    ``weights_only=True``.

    Raises
    ------
    ModelError
        The file is missing, damaged, holds more than tensors, or does not fit the model; the model is then unchanged.
    """
    load_state(model, read_state(path), path)


def read_state(path: Path | str) -> dict[str, Tensor]:
    """Read the state dict that :func:`load_checkpoint` would load. ModelError as there, whatever the model."""
    return _without_prefix(_unwrapped(_read(Path(path)), path))


def load_state(model: nn.Module, state: Mapping[str, Tensor], path: Path | str) -> None:
    """Load a state dict that was read from ``path``. ModelError if it does not fit; the model is then unchanged."""
    _check_fit(model, dict(state), path)
    model.load_state_dict(state)


def _read(path: Path) -> object:
    if not path.is_file():
        raise ModelError(f"{path}: no such checkpoint; expected a file written by torch.save(model.state_dict(), path)")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path}: damaged, or holds more than tensors, which is not loaded; save model.state_dict() alone"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise ModelError(f"{path}: not a readable checkpoint ({one_line(error)}); write it again") from error


def _unwrapped(content: object, path: Path | str) -> dict[str, Tensor]:
    if isinstance(content, Mapping):
        content = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping) or not content:
        raise ModelError(f"{path}: holds a {type(content).__name__}; expected a state dict: save model.state_dict()")
    return dict(content)


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _check_fit(model: nn.Module, state: dict[str, Tensor], path: Path | str) -> None:
    """Raise ModelError unless the state has the model's keys, with tensors of the model's shapes."""
    expected = model.state_dict()
    shapes = [
        f"{key} {_shape(state[key])} instead of {_shape(expected[key])}"
        for key in expected
        if key in state and _shape(state[key]) != _shape(expected[key])
    ]
    problems = {
        "missing": [key for key in expected if key not in state],
        "unexpected": [str(key) for key in state if key not in expected],
        "of another shape": shapes,
    }
    named = [f"{kind}: {_first(keys)}" for kind, keys in problems.items() if keys]
    if named:
        raise ModelError(f"{path}: does not fit the model; {'; '.join(named)}; check model.name and model.kwargs")


def _shape(value: object) -> tuple[int, ...] | str:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


def _first(keys: list[str]) -> str:
    more = f" and {len(keys) - _N_NAMED} more" if len(keys) > _N_NAMED else ""
    return ", ".join(keys[:_N_NAMED]) + more
