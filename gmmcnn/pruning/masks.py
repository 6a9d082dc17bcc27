"""Masks: filters that output zero for a while, their files, and what they do to accuracy.

A mask names filters by layer, ``{"features.conv1": [0, 3]}``, apart from the model. A masked filter contributes
nothing: its channel is zero after the convolution and stays zero through everything that treats each channel on its
own, as a normalisation (whose shift would revive it), an activation (sigmoid(0) is not 0), pooling or a depthwise
convolution, whether that is a module or a function call. Where the channel is then added to a residual stream, the
stream's other summand passes. Where it cannot be shown that the channel stays zero, the forward pass ends in an error.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from gmmcnn.constants import Stream
from gmmcnn.errors import ModelError, one_line
from gmmcnn.files import write_json
from gmmcnn.models.foreign import CONVOLUTIONS, eager, runnable
from gmmcnn.pruning.following import ZeroKeeper, zeroed

Mask = Mapping[str, Any]
"""Filters by dotted layer name: whole numbers, or a truth value for each; in a sequence, array, tensor or iterator."""

_FORMAT = "gmmcnn-mask-1"


def save_mask(path: Path, mask: Mask) -> None:
    """Write a mask as JSON."""
    write_json(path, {"format": _FORMAT, "layers": indices(mask)}, indent=1)


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


def indices(mask: Mask) -> dict[str, list[int]]:
    """Filters by layer, in ascending order, each once.

    Parameters
    ----------
    mask : mapping
        By layer: whole numbers, or a bool for each filter, as a list, tuple, set, range, array, tensor, or iterator.

    Raises
    ------
    ModelError
        It is not that.
    """
    return {layer: _indices_of(layer, filters) for layer, filters in _by_layer(mask).items()}


def _by_layer(mask: Mask) -> Mask:
    if not isinstance(mask, Mapping):
        raise ModelError(f'a mask is a {type(mask).__name__}; expected a mapping, as {{"layer": [0, 3]}}')
    for layer in mask:
        if not isinstance(layer, str):
            raise ModelError(f"mask: layer {layer!r} is no name; expected the dotted name of a convolution")
    return mask


def _indices_of(layer: str, filters: Any, n_filters: int | None = None) -> list[int]:
    """Whole numbers from any collection, checked against the number of filters where that is known."""
    expected = "expected whole numbers, as [0, 3], or a truth value for each filter"
    if isinstance(filters, str | bytes | Mapping) or not isinstance(filters, Iterable):
        raise ModelError(f"layer {layer!r}: filters are {filters!r}; {expected}")
    try:
        values = np.asarray(filters.detach().cpu() if isinstance(filters, Tensor) else list(filters))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"layer {layer!r}: filters cannot be read ({one_line(error)}); {expected}") from error
    if values.shape == (0,):
        return []
    if values.ndim != 1 or values.dtype.kind not in "biu":
        raise ModelError(f"layer {layer!r}: filters have shape {values.shape} and type {values.dtype}; {expected}")
    if values.dtype.kind == "b":
        if n_filters not in (None, len(values)):
            raise ModelError(f"layer {layer!r}: {len(values)} truth values; expected {n_filters}, one for each filter")
        values = values.nonzero()[0]
    chosen = np.unique(values).tolist()
    for index in chosen:
        if index < 0 or (n_filters is not None and index >= n_filters):
            known = f"0 to {n_filters - 1}" if n_filters is not None else "at least 0"
            raise ModelError(f"layer {layer!r} has no filter {index}; expected {known}")
    return chosen


@contextmanager
def masked(model: nn.Module, mask: Mask | str | Path) -> Iterator[nn.Module]:
    """Let filters output zero inside the block; the model is restored exactly after it, also on an error.

    Parameters
    ----------
    model : nn.Module
        Any model; its parameters and buffers are not touched.
    mask : mapping or path
        Filters by dotted name of a convolution, or the file of such a mask. Filters are whole numbers, or a truth value
        for each filter: a list, set, array, tensor or iterator of them.

    Yields
    ------
    nn.Module
        The same model.

    Raises
    ------
    ModelError
        A layer is not a convolution of the model, a filter is not one of its output channels, or the file is not a
        mask. In the block: a function makes something of a masked channel that cannot be followed. At its end: a masked
        layer was never called, so that its mask had no effect.

    Notes
    -----
    Channels are followed in the thread that entered the block, as long as they are torch's: an array of numpy is
    nobody's channel. Compiled modules run uncompiled in it.
    """
    network = runnable(model, ModelError)
    filters = checked(network, load_mask(Path(mask)) if isinstance(mask, str | Path) else mask)
    silent = {layer for layer, chosen in filters.items() if chosen}

    def zero_output(layer: str, kept: Tensor, module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        silent.discard(layer)
        return zeroed(output, kept.reshape((1,) * (output.ndim - kept.ndim) + kept.shape))  # of one image, or a batch

    with ExitStack() as stack:
        for layer in sorted(silent):
            module = network.get_submodule(layer)
            hook = partial(zero_output, layer, _kept_channels(module, filters[layer]))
            stack.callback(module.register_forward_hook(hook).remove)
        if silent:
            stack.enter_context(eager())
            stack.enter_context(ZeroKeeper(network))
        yield model
    if silent:
        raise ModelError(
            f"masked without effect: {', '.join(sorted(silent))} was never called as a module inside the block; "
            "run the model in it, and mask only layers whose own forward makes the maps"
        )


def _kept_channels(convolution: Any, filters: list[int]) -> Tensor:
    """(C, 1, …) bool, False where a channel is masked; one more dimension for each of a map."""
    kept = torch.ones(convolution.out_channels, *len(convolution.kernel_size) * [1], dtype=torch.bool)
    kept[filters] = False
    return kept


def checked(model: nn.Module, mask: Mask) -> dict[str, list[int]]:
    """:func:`indices` of a mask that fits a model; ModelError where it does not."""
    convolutions = {name: module for name, module in model.named_modules() if isinstance(module, CONVOLUTIONS)}
    for layer in _by_layer(mask):
        if layer not in convolutions:
            raise ModelError(
                f"{layer!r} is not a convolution of this model; it has {', '.join(convolutions) or 'none'}"
            )
    return {layer: _indices_of(layer, filters, convolutions[layer].out_channels) for layer, filters in mask.items()}


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
    rng = np.random.default_rng([seed, Stream.RANDOM_MASKS])
    sizes = {layer: len(chosen) for layer, chosen in indices(mask).items()}
    return [
        {
            layer: sorted(rng.choice(filters_by_layer[layer], size, replace=False).tolist())
            for layer, size in sizes.items()
        }
        for _ in range(n_masks)
    ]


def evaluate_masks(
    model: nn.Module, masks: Iterable[tuple[str, int, Mask]], evaluate: Callable[[nn.Module], dict[str, float]]
) -> Iterator[dict[str, Any]]:
    """Evaluate a model with one mask after the other.

    Parameters
    ----------
    model : nn.Module
        The model.
    masks : iterable of (kind, number, mask)
        Filters to mask, what kind of choice they are, and which of its kind; without filters, the model as it is.
    evaluate : callable
        Model → accuracies and losses by name.

    Yields
    ------
    dict
        ``mask`` (its kind), ``number``, ``n_filters``, and what ``evaluate`` gives.
    """
    for kind, number, mask in masks:
        with masked(model, mask):
            figures = evaluate(model)
        yield {"mask": kind, "number": number, "n_filters": sum(map(len, mask.values()))} | figures


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
    jobs: list[tuple[str, int, dict[str, list[int]]]] = [("none", 0, {}), ("anomalous", 0, indices(mask))]
    jobs += [("random", number, indices(control)) for number, control in enumerate(controls)]
    rows = []
    for row in evaluate_masks(model, jobs, evaluate):
        rows.append(row)
        advance()
    return pd.DataFrame(rows).rename(columns={"number": "control"})
