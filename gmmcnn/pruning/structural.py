"""Structural removal: the smaller network that computes what the masked one does.

A masked filter's channel is zero wherever it is read (:func:`gmmcnn.masked`). Where only the next layer reads it, the
filter, its share of the normalisation and the next layer's weights on it can be cut out, and the logits stay the same.
A channel that is added to a residual stream is *coupled* with a channel of every other layer that writes to the stream:
cutting it out would take those too, and the stream's own content. Such a filter stays and is silenced: its weights and
its normalisation's scale and shift become zero. Dependencies are found by Torch-Pruning (Fang, Ma, Song, Mi, Wang,
*DepGraph: Towards Any Structural Pruning*, 2023).
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gmmcnn.errors import EngineError, ModelError, one_line
from gmmcnn.pruning.masks import Mask, masked

_COUPLING = ("AddBackward", "SubBackward", "MulBackward")  # channels that meet others of the same number
_TOLERANCE = 1e-5


@dataclass(frozen=True, eq=False)
class Removal:
    """A network without some of its filters.

    Attributes
    ----------
    model : nn.Module
        A new network, in eval mode.
    removed : dict
        Filters that were cut out, by layer, in the numbering of the network given.
    silenced : dict
        Filters that stay, with zero for their output, because other layers share their channels.
    """

    model: nn.Module
    removed: dict[str, list[int]]
    silenced: dict[str, list[int]]


def remove_filters(model: nn.Module, mask: Mask, example: Tensor) -> Removal:
    """Cut filters out of a copy of a network, so that its logits are those of the masked network in eval mode.

    Parameters
    ----------
    model : nn.Module
        Left as it is.
    mask : mapping
        Filter indices by dotted name of a Conv2d.
    example : (1, C, H, W) float32
        An image, to follow the channels through the network.

    Returns
    -------
    Removal

    Raises
    ------
    ModelError
        A layer is not a Conv2d of the model, a filter is not one of its output channels, the network's channels cannot
        be followed, or a filter can neither be cut out nor silenced.
    EngineError
        Torch-Pruning is not installed.
    """
    smaller = copy.deepcopy(model).eval().requires_grad_()
    with masked(copy.deepcopy(model).eval(), mask) as same, torch.no_grad():
        expected = same(example)
    removed: dict[str, list[int]] = {}
    silenced: dict[str, list[int]] = {}
    for layer, filters in mask.items():
        chosen = sorted({int(index) for index in filters})
        n_filters = len(model.get_parameter(f"{layer}.weight"))
        group = _group(smaller, layer, chosen, example) if 0 < len(chosen) < n_filters else None
        if group is not None:
            group.prune()
            removed[layer] = chosen
        elif chosen:
            _silence(smaller, layer, chosen, example)
            silenced[layer] = chosen
    with torch.no_grad():
        difference = float((smaller(example) - expected).abs().max())
    if not difference <= _TOLERANCE * max(1.0, float(expected.abs().max())):
        raise ModelError(
            f"structural removal from {', '.join(mask)}: logits differ from the masked network's by {difference:.2g}; "
            "the network does something to these channels that cannot be followed: mask them instead"
        )
    return Removal(smaller, removed, silenced)


def require_torch_pruning() -> Any:
    """Import Torch-Pruning; raises EngineError where it is not installed."""
    try:
        import torch_pruning
    except ImportError:
        raise EngineError("structural removal needs Torch-Pruning: pip install 'gmmcnn[prune]'") from None
    return torch_pruning


def _group(model: nn.Module, layer: str, filters: list[int], example: Tensor) -> Any:
    """What is to be cut together with these filters, by its ``prune()``; None where their channels are coupled."""
    torch_pruning = require_torch_pruning()
    try:
        with torch.enable_grad():
            graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=example)
        group = graph.get_pruning_group(
            model.get_submodule(layer), torch_pruning.prune_conv_out_channels, idxs=list(filters)
        )
    except Exception as error:  # whatever the tracer raises on a network that it cannot follow
        raise ModelError(f"{layer}: its channels cannot be followed through the network ({one_line(error)})") from error
    coupled = any(operation in dependency.target.name for dependency, _ in group for operation in _COUPLING)
    return None if coupled else group


def _silence(model: nn.Module, layer: str, filters: list[int], example: Tensor) -> None:
    """Set to zero what makes these filters' outputs: weights, bias, and scale and shift of the normalisation behind."""
    convolution = model.get_submodule(layer)
    followers = [convolution]
    outputs: list[Tensor] = []

    def remember(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        outputs.append(output)

    def follow(module: nn.Module, inputs: tuple) -> None:
        if any(inputs[0] is output for output in outputs):
            followers.append(module)

    handles = [convolution.register_forward_hook(remember)]
    handles += [
        module.register_forward_pre_hook(follow)
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]
    try:
        with torch.no_grad():
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    with torch.no_grad():
        for module in followers:
            for parameter in module.parameters(recurse=False):
                parameter[filters] = 0
