"""Masks: filters that output zero for a while, their files, and what they do to accuracy.

A mask names filters by layer, ``{"features.conv1": [0, 3]}``, apart from the model. A masked filter contributes
nothing: its channel is zero after the convolution and stays zero through everything that treats each channel on its
own, as a normalisation (whose shift would revive it), an activation (sigmoid(0) is not 0) or pooling, whether that is
a module or a function call. Where the channel is then added to a residual stream, the stream's other summand passes.
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

from gmmcnn.errors import ModelError
from gmmcnn.featuremaps.capture import eager, unwrapped
from gmmcnn.files import write_json
from gmmcnn.pruning.following import KEPT, ZeroKeeper, zeroed

Mask = Mapping[str, Sequence[int]]
"""Filters by dotted layer name."""

_FORMAT = "gmmcnn-mask-1"


def save_mask(path: Path, mask: Mask) -> None:
    """Write a mask as JSON."""
    content = {"format": _FORMAT, "layers": {layer: sorted(int(f) for f in filters) for layer, filters in mask.items()}}
    write_json(path, content, indent=1)


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
            stack.enter_context(ZeroKeeper())
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
    earlier = getattr(output, KEPT, None)  # where masks are nested
    kept = kept.reshape((1,) * (output.ndim - 3) + kept.shape).to(output.device)  # of an image, or a batch of them
    return zeroed(output, kept if earlier is None else kept & earlier)


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
    jobs: list[tuple[str, int, Mask]] = [("none", 0, {}), ("anomalous", 0, mask)]
    jobs += [("random", number, control) for number, control in enumerate(controls)]
    rows = []
    for row in evaluate_masks(model, jobs, evaluate):
        rows.append(row)
        advance()
    return pd.DataFrame(rows).rename(columns={"number": "control"})
