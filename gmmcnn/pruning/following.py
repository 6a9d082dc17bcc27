"""What a mask does downstream: masked channels stay zero through everything that keeps channels apart."""

from collections.abc import Callable
from functools import reduce
from operator import and_, or_
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gmmcnn.errors import ModelError
from gmmcnn.featuremaps.capture import ACTIVATIONS, ADDITIONS, FOLLOWED, function_name, tensors

KEPT = "_gmmcnn_kept_channels"

_CHANNELWISE = ACTIVATIONS | FOLLOWED | {"softmax", "log_softmax", "exp"}

_MOVING = frozenset((
    "cat", "concat", "concatenate", "permute", "transpose", "swapaxes", "movedim", "moveaxis", "flip", "roll",
    "getitem", "reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze",
))  # fmt: skip
"""Functions that change no number, only its place."""


def zeroed(maps: Tensor, kept: Tensor) -> Tensor:
    """Maps with zero where they are not kept, marked so that :class:`ZeroKeeper` goes on with it."""
    result = torch.where(kept, maps, torch.zeros((), dtype=maps.dtype, device=maps.device))
    setattr(result, KEPT, kept)
    return result


class ZeroKeeper(TorchFunctionMode):
    """Follow masked channels through the functions of a forward pass, and keep them zero."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        inputs = list(tensors([*args, *kwargs.values()]))
        marked = any(hasattr(tensor, KEPT) for tensor in inputs)
        output = func(*args, **kwargs)
        if not marked or not isinstance(output, Tensor):
            return output
        name = function_name(func)
        kept = _moved(func, args, kwargs) if name in _MOVING else _kept_after(name, inputs, output)
        if kept is not None and _broadcasts(kept, output):
            kept = kept.to(output.device)
            setattr(output, KEPT, kept)  # also where it is changed in place, and what is returned is not looked at
            return output if name in _MOVING else zeroed(output, kept)
        if hasattr(output, KEPT):
            delattr(output, KEPT)  # changed in place, as where a residual stream is added to it
        return output


def _kept_after(name: str, inputs: list[Tensor], output: Tensor) -> Tensor | None:
    """What is kept of a function's output; None where its channels are no longer those of masked filters.

    Raises
    ------
    ModelError
        The function is not known, and makes something of a masked channel.
    """
    if name in ADDITIONS:  # of maps of one shape; what is broadcast is a shift, as that of a normalisation
        summands = [getattr(tensor, KEPT, None) for tensor in inputs if tensor.shape == output.shape]
        followed = [kept for kept in summands if kept is not None]
        return reduce(or_, followed) if followed and len(followed) == len(summands) else None
    if name == "mul":
        return reduce(and_, [getattr(tensor, KEPT) for tensor in inputs if hasattr(tensor, KEPT)])
    kept = getattr(inputs[0], KEPT, None)
    if kept is None or name in _CHANNELWISE:
        return kept
    of_each_number = len(inputs) == 1 and output.shape == inputs[0].shape and output.is_floating_point()
    if not of_each_number or name == "get" or name.startswith("new") or name.endswith("like"):
        return None
    if torch.where(kept, 0, output).any():
        raise ModelError(
            f"{name}() makes something of a masked channel, and cannot be followed; "
            "leave the filters before it out of the mask, or use an activation of torch.nn"
        )
    return kept


def _moved(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Tensor | None:
    """What a function that only moves numbers keeps: the same, moved alike."""

    def kept(maps: Tensor) -> Tensor:
        mark = getattr(maps, KEPT, torch.ones((), dtype=torch.bool))
        return mark.expand(maps.shape).contiguous()

    if not args:
        return None
    first = kept(args[0]) if isinstance(args[0], Tensor) else [kept(maps) for maps in args[0]]
    return func(first, *args[1:], **kwargs)


def _broadcasts(kept: Tensor, maps: Tensor) -> bool:
    return kept.ndim == maps.ndim and all(n in (1, size) for n, size in zip(kept.shape, maps.shape, strict=True))
