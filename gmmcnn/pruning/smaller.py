"""A pruned network to keep: files that torch alone reads, and what the network weighs and costs before and after.

::

    RUN/pruned.pt     {"state_dict": weights, "plan": what was removed, and the sizes of the layers that changed}
    RUN/pruned.pt2    the whole network, weights and forward pass, by torch.export
    RUN/pruning.csv   parameters, bytes, operations and accuracies of both

``pruned.pt2`` needs no class::

    network = torch.export.load("pruned.pt2").module()

``pruned.pt`` goes into the network's own class::

    saved = torch.load("pruned.pt", weights_only=True)
    for name, sizes in saved["plan"]["sizes"].items():
        vars(network.get_submodule(name)).update(sizes)
    for name, tensor in saved["state_dict"].items():
        module, _, kind = name.rpartition(".")
        getattr(network.get_submodule(module), kind).data = tensor
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gmmcnn.errors import one_line
from gmmcnn.files import replacing
from gmmcnn.pruning.structural import Removal

_SIZES = ("in_channels", "out_channels", "in_features", "out_features", "num_features", "num_channels", "groups")
"""Attributes of torch's layers that say how many channels they have."""


def plan_of(model: nn.Module, removal: Removal) -> dict[str, Any]:
    """Everything by which a network's own class becomes the smaller network, in plain numbers and names.

    Parameters
    ----------
    model : nn.Module
        The network before.
    removal : Removal

    Returns
    -------
    dict
        ``removed`` and ``silenced``: filters by layer, in the numbering of the network before. ``sizes``: of each
        module that changed, its new attributes, as ``{"conv2": {"in_channels": 5}}``.
    """
    before = dict(model.named_modules())
    changed = {name: _sizes_that_differ(before[name], module) for name, module in removal.model.named_modules()}
    return {
        "removed": removal.removed,
        "silenced": removal.silenced,
        "sizes": {name: sizes for name, sizes in changed.items() if sizes},
    }


def save(folder: Path, model: nn.Module, removal: Removal, example: Tensor) -> str | None:
    """Write ``pruned.pt``, and ``pruned.pt2`` where torch can export the network.

    Parameters
    ----------
    folder : Path
    model : nn.Module
        The network before.
    removal : Removal
    example : (1, C, H, W) float32
        An image.

    Returns
    -------
    str or None
        Why there is no ``pruned.pt2``; None where there is one.
    """
    exported = folder / "pruned.pt2"
    with replacing(folder / "pruned.pt") as file:
        torch.save({"state_dict": removal.model.state_dict(), "plan": plan_of(model, removal)}, file)
    try:
        content = _exported(removal.model, example)
    except Exception as error:  # noqa: BLE001 - torch's exporter raises whatever it stumbles on
        exported.unlink(missing_ok=True)  # it would be of another mask
        return one_line(error)
    with replacing(exported) as file:
        file.write(content)
    return None


def compare(
    model: nn.Module, removal: Removal, example: Tensor, evaluate: Callable[[nn.Module], dict[str, float]]
) -> pd.DataFrame:
    """Size, cost and accuracy before and after.

    Parameters
    ----------
    model : nn.Module
        The network before.
    removal : Removal
    example : (1, C, H, W) float32
        An image.
    evaluate : callable
        Network → accuracies and losses by name.

    Returns
    -------
    DataFrame
        ``network`` (``before``, ``after``), ``filters``, ``parameters``, ``bytes`` (of the weights and buffers),
        ``flops`` (of one image, two for a multiplication and addition, as torch counts them), and what ``evaluate``
        gives.
    """
    rows = [
        {"network": name, **_weight(network), "flops": _flops(network, example), **evaluate(network)}
        for name, network in (("before", model), ("after", removal.model))
    ]
    return pd.DataFrame(rows)


def sentence(sizes: pd.DataFrame, removal: Removal) -> str:
    """Say what :func:`compare` found, in a line."""
    before, after = sizes.to_dict("records")
    n_removed, n_silenced = (sum(map(len, chosen.values())) for chosen in (removal.removed, removal.silenced))
    stay = f", {n_silenced:,} silenced because other layers share their channels" if n_silenced else ""
    saved = {name: 1 - after[name] / before[name] for name in ("parameters", "flops")}
    change = after["validation_accuracy"] - before["validation_accuracy"]
    return (
        f"Removed {n_removed:,} of {before['filters']:,} filters{stay}: {saved['parameters']:.1%} fewer parameters, "
        f"{saved['flops']:.1%} fewer operations, validation accuracy {after['validation_accuracy']:.1%} ({change:+.1%})"
    )


def _sizes_that_differ(before: nn.Module, after: nn.Module) -> dict[str, int]:
    sizes = {key: getattr(after, key) for key in _SIZES if isinstance(getattr(after, key, None), int)}
    return {key: value for key, value in sizes.items() if getattr(before, key) != value}


def _exported(model: nn.Module, example: Tensor) -> bytes:
    """What torch.export.save writes, for any number of images."""
    was_training = model.training
    try:
        images = torch.cat([example, example])  # one image would be taken for the only number there is
        batch = {0: torch.export.Dim("images", min=1)}
        program = torch.export.export(model.eval(), (images,), dynamic_shapes=(batch,))
    finally:
        model.train(was_training)
    content = io.BytesIO()
    torch.export.save(program, content)
    return content.getvalue()


def _weight(model: nn.Module) -> dict[str, int]:
    tensors = [*model.parameters(), *model.buffers()]
    convolutions = [module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)]
    return {
        "filters": sum(convolutions),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors),
    }


def _flops(model: nn.Module, example: Tensor) -> int:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(example)
    return counter.get_total_flops()
