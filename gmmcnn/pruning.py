"""Masks: filters that output zero for a while, their files, and what they do to accuracy.

A mask names filters by layer, ``{"features.conv1": [0, 3]}``, apart from the model. A masked filter contributes
nothing: its channel is zero after the convolution, stays zero through the normalisation that follows (whose shift
would revive it) and through the activation (sigmoid(0) is not 0). Where the channel is then added to a residual
stream, the stream's other summand passes.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from gmmcnn.errors import ModelError

Mask = Mapping[str, Sequence[int]]
"""Filters by dotted layer name."""

_FORMAT = "gmmcnn-mask-1"
_PASSED_ON = "_gmmcnn_kept_channels"
_CHANNELWISE = (
    nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm,
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh,
    nn.Sigmoid, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Identity,
)  # fmt: skip


def save_mask(path: Path, mask: Mask) -> None:
    """Write a mask as JSON."""
    content = {"format": _FORMAT, "layers": {layer: sorted(int(f) for f in filters) for layer, filters in mask.items()}}
    path.write_text(json.dumps(content, indent=1) + "\n")


def load_mask(path: Path) -> dict[str, list[int]]:
    """Read what :func:`save_mask` wrote.

    Raises
    ------
    ModelError
        The file is not a mask.
    """
    try:
        content = json.loads(Path(path).read_text())
        if content["format"] == _FORMAT:
            return {str(layer): [int(f) for f in filters] for layer, filters in content["layers"].items()}
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
        A layer is not a Conv2d of the model, or a filter is not one of its output channels.
    """
    filters = load_mask(Path(mask)) if isinstance(mask, str | Path) else mask
    kept = {layer: _kept_channels(model, layer, indices) for layer, indices in filters.items()}
    handles = [model.get_submodule(layer).register_forward_hook(_zero(channels)) for layer, channels in kept.items()]
    handles += [
        module.register_forward_hook(_pass_on) for module in model.modules() if isinstance(module, _CHANNELWISE)
    ]
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()


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


def _zero(kept: Tensor) -> Callable[[nn.Module, tuple, Tensor], Tensor]:
    """Forward hook that zeroes channels, and marks its output so that :func:`_pass_on` keeps them zero."""

    def hook(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        zeroed = torch.where(kept.to(output.device), output, torch.zeros((), dtype=output.dtype, device=output.device))
        setattr(zeroed, _PASSED_ON, kept)
        return zeroed

    return hook


def _pass_on(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor | None:
    kept = getattr(inputs[0], _PASSED_ON, None)
    return None if kept is None else _zero(kept)(module, inputs, output)


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
