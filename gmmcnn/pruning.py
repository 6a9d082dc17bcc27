"""Masks: filters that output zero for a while, their files, and what they do to accuracy.

A mask names filters by layer, ``{"features.conv1": [0, 3]}``, apart from the model. A masked filter contributes
nothing: its channel is zero after the convolution and stays zero through everything that treats each channel on its
own, as a normalisation (whose shift would revive it), an activation (sigmoid(0) is not 0) or pooling, whether that is
a module or a function call. Where the channel is then added to a residual stream, the stream's other summand passes.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial, reduce
from operator import and_, or_
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gmmcnn.errors import ModelError
from gmmcnn.featuremaps.capture import ACTIVATIONS, ADDITIONS, FOLLOWED, eager, function_name, tensors, unwrapped

Mask = Mapping[str, Sequence[int]]
"""Filters by dotted layer name."""

_FORMAT = "gmmcnn-mask-1"
_KEPT = "_gmmcnn_kept_channels"
_CHANNELWISE = ACTIVATIONS | FOLLOWED | {"softmax", "log_softmax", "exp"}
_MOVING = frozenset((
    "cat", "concat", "concatenate", "permute", "transpose", "swapaxes", "movedim", "moveaxis", "flip", "roll",
    "getitem", "reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze",
))  # fmt: skip
"""Functions that change no number, only its place."""


def save_mask(path: Path, mask: Mask) -> None:
    """Write a mask as JSON."""
    content = {"format": _FORMAT, "layers": {layer: sorted(int(f) for f in filters) for layer, filters in mask.items()}}
    path.write_text(json.dumps(content, indent=1) + "\n")


def load_mask(path: Path) -> dict[str, list[int]]:
    """Read what :func:`save_mask` wrote.

    Raises
    ------
    ModelError
        There is no such file, or it is not a mask.
    """
    try:
        content = json.loads(Path(path).read_text())
        if content["format"] == _FORMAT:
            return {str(layer): [int(f) for f in filters] for layer, filters in content["layers"].items()}
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}; expected the file of a mask, as task=prune writes it") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise ModelError(f'{path}: not a mask; expected JSON with "format": "{_FORMAT}" and "layers"')


@contextmanager
def masked(model: nn.Module, mask: Mask | str | Path) -> Iterator[nn.Module]:
    """Let filters output zero inside the block; the model is restored exactly after it, also on an error.

    Parameters
    ----------
    model : nn.Module
        Any model; its parameters and buffers are not touched.
    mask : mapping or path
        Filter indices by dotted name of a Conv2d, or the file of such a mask.

    Yields
    ------
    nn.Module
        The same model.

    Raises
    ------
    ModelError
        A layer is not a Conv2d of the model, a filter is not one of its output channels, or the file is not a mask. In
        the block: a function that is not known makes something of a masked channel.

    Notes
    -----
    Channels are followed in the thread that entered the block. Compiled modules run uncompiled in it.
    """
    filters = load_mask(Path(mask)) if isinstance(mask, str | Path) else mask
    network = unwrapped(model)
    kept = {layer: _kept_channels(network, layer, indices) for layer, indices in filters.items()}
    with ExitStack() as stack:
        for layer, channels in kept.items():
            hook = partial(_zero_output, channels)
            stack.callback(network.get_submodule(layer).register_forward_hook(hook).remove)
        if kept:
            stack.enter_context(eager())
            stack.enter_context(_ZeroKeeper())
        yield model


def _kept_channels(model: nn.Module, layer: str, filters: Sequence[int]) -> Tensor:
    """(C, 1, 1) bool, False where a channel is masked."""
    convolutions = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    if layer not in convolutions:
        raise ModelError(f"{layer!r} is not a Conv2d of this model; it has {', '.join(convolutions) or 'none'}")
    n_filters = convolutions[layer].out_channels
    for index in filters:
        if not 0 <= index < n_filters:
            raise ModelError(f"layer {layer!r} has no filter {index}; expected 0 to {n_filters - 1}")
    kept = torch.ones(n_filters, 1, 1, dtype=torch.bool)
    kept[list(filters)] = False
    return kept


def _zero_output(kept: Tensor, module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
    """Forward hook of a convolution."""
    earlier = getattr(output, _KEPT, None)  # where masks are nested
    kept = kept.reshape((1,) * (output.ndim - 3) + kept.shape).to(output.device)  # of an image, or a batch of them
    return _zeroed(output, kept if earlier is None else kept & earlier)


def _zeroed(maps: Tensor, kept: Tensor) -> Tensor:
    """Maps with zero where they are not kept, marked so that :class:`_ZeroKeeper` goes on with it."""
    zeroed = torch.where(kept, maps, torch.zeros((), dtype=maps.dtype, device=maps.device))
    setattr(zeroed, _KEPT, kept)
    return zeroed


class _ZeroKeeper(TorchFunctionMode):
    """Follow masked channels through the functions of a forward pass, and keep them zero."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        inputs = list(tensors([*args, *kwargs.values()]))
        marked = any(hasattr(tensor, _KEPT) for tensor in inputs)
        output = func(*args, **kwargs)
        if not marked or not isinstance(output, Tensor):
            return output
        name = function_name(func)
        kept = _moved(func, args, kwargs) if name in _MOVING else _kept_after(name, inputs, output)
        if kept is not None and _broadcasts(kept, output):
            kept = kept.to(output.device)
            setattr(output, _KEPT, kept)  # also where it is changed in place, and what is returned is not looked at
            return output if name in _MOVING else _zeroed(output, kept)
        if hasattr(output, _KEPT):
            delattr(output, _KEPT)  # changed in place, as where a residual stream is added to it
        return output


def _kept_after(name: str, inputs: list[Tensor], output: Tensor) -> Tensor | None:
    """What is kept of a function's output; None where its channels are no longer those of masked filters.

    Raises
    ------
    ModelError
        The function is not known, and makes something of a masked channel.
    """
    if name in ADDITIONS:  # of maps of one shape; what is broadcast is a shift, as that of a normalisation
        summands = [getattr(tensor, _KEPT, None) for tensor in inputs if tensor.shape == output.shape]
        followed = [kept for kept in summands if kept is not None]
        return reduce(or_, followed) if followed and len(followed) == len(summands) else None
    if name == "mul":
        return reduce(and_, [getattr(tensor, _KEPT) for tensor in inputs if hasattr(tensor, _KEPT)])
    kept = getattr(inputs[0], _KEPT, None)
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
        mark = getattr(maps, _KEPT, torch.ones((), dtype=torch.bool))
        return mark.expand(maps.shape).contiguous()

    if not args:
        return None
    first = kept(args[0]) if isinstance(args[0], Tensor) else [kept(maps) for maps in args[0]]
    return func(first, *args[1:], **kwargs)


def _broadcasts(kept: Tensor, maps: Tensor) -> bool:
    return kept.ndim == maps.ndim and all(n in (1, size) for n, size in zip(kept.shape, maps.shape, strict=True))


def random_masks(mask: Mask, filters_by_layer: Mapping[str, Sequence[int]], n_masks: int, seed: int) -> list[Mask]:
    """Draw masks that take as many filters out of each layer as ``mask`` does.

    Parameters
    ----------
    mask : mapping
        The mask to be compared with.
    filters_by_layer : mapping
        Filters that may be drawn, by layer: the live ones, so that a control does not mask what is dead anyway.
    n_masks : int
        Number of masks.
    seed : int
        Of the draw.
    """
    rng = np.random.default_rng(seed)
    return [
        {
            layer: sorted(rng.choice(filters_by_layer[layer], len(chosen), replace=False).tolist())
            for layer, chosen in mask.items()
        }
        for _ in range(n_masks)
    ]


def compare_masks(
    model: nn.Module,
    mask: Mask,
    controls: Sequence[Mask],
    evaluate: Callable[[nn.Module], dict[str, float]],
    advance: Callable[[], None] = lambda: None,
) -> pd.DataFrame:
    """Evaluate a model without a mask, with ``mask``, and with every control.

    Parameters
    ----------
    model : nn.Module
        The model.
    mask : mapping
        Filters to mask.
    controls : sequence of mappings
        Masks of the same size.
    evaluate : callable
        Model → accuracies and losses by name.
    advance : callable
        Called after each evaluation.

    Returns
    -------
    DataFrame
        ``mask`` (``none``, ``anomalous``, ``random``), ``control`` (number of the control), ``n_filters``, and what
        ``evaluate`` gives.
    """
    jobs: list[tuple[str, int, Mask]] = [("none", 0, {}), ("anomalous", 0, mask)]
    jobs += [("random", number, control) for number, control in enumerate(controls)]
    rows = []
    for kind, number, filters in jobs:
        with masked(model, filters):
            figures = evaluate(model)
        rows.append({"mask": kind, "control": number, "n_filters": sum(map(len, filters.values()))} | figures)
        advance()
    return pd.DataFrame(rows)
