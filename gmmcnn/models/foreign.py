"""A network that somebody else wrote: what is asked of it, and how it is run so that its errors become ours."""

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gmmcnn.errors import GmmcnnError, one_line

CONVOLUTIONS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
"""Layers whose output channels are filters."""


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside ``torch.compile`` or ``DataParallel`` wrappers, on which hooks would not fire."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def runnable(model: nn.Module, kind: type[GmmcnnError]) -> nn.Module:
    """The module itself, without wrappers, if it is one that hooks reach and that holds numbers.

    Parameters
    ----------
    model : nn.Module
    kind : type
        Class of the error.

    Raises
    ------
    GmmcnnError
        Of that kind: this is no module, or one that is scripted, lazy and never run, or on the meta device.
    """
    if not isinstance(model, nn.Module):
        hint = "; load it into the network that it belongs to" if isinstance(model, dict) else ""
        raise kind(f"the model is a {type(model).__name__}; expected a torch.nn.Module{hint}")
    model = unwrapped(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise kind("the model is a scripted module, which hooks do not reach; pass the module it was made from")
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(value):
            raise kind(f"{name} has no size yet (a lazy module); run the model once on some images, then pass it")
        if value.is_meta:
            raise kind(f"{name} is on the meta device and holds no numbers; load the model's weights first")
    return model


def outcome(model: nn.Module, images: Tensor, kind: type[GmmcnnError]) -> Any:
    """What a model makes of images, whatever that is.

    Parameters
    ----------
    model : nn.Module
    images : (N, …) Tensor
        Its only argument.
    kind : type
        Class of the error.

    Raises
    ------
    GmmcnnError
        Of that kind, for whatever the model raises, except for memory that does not suffice and errors of our own.
    """
    try:
        return model(images)
    except (GmmcnnError, MemoryError, torch.OutOfMemoryError):
        raise
    except (Exception, SystemExit) as error:
        said = f"{type(error).__name__}: {one_line(error)}"
        raise kind(
            f"the model does not run on images of shape {tuple(images.shape)}: {_of_arguments(model) or said}"
        ) from error


def _of_arguments(model: nn.Module) -> str:
    """Say which arguments a forward pass needs beyond the images, nothing where it needs none."""
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        return ""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    first = parameters[0].kind in (*positional, inspect.Parameter.VAR_POSITIONAL) if parameters else False
    collected = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    missing = [p.name for p in parameters[1:] if p.default is p.empty and p.kind not in collected]
    if first and not missing:
        return ""
    needs = f"needs {', '.join(missing)} besides the images" if missing else "takes no images"
    return f"{type(model).__name__}.forward {needs}; wrap it in a module that takes the images alone"


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; afterwards the modes, buffers and random states are what they were.

    The modes are set directly: ``model.eval()`` may be overridden to do more, which could not be taken back.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    devices = {parameter.get_device() for parameter in model.parameters() if parameter.is_cuda}
    with torch.random.fork_rng(devices=sorted(devices)):
        try:
            for module, _ in modes:
                module.training = False
            yield
        finally:
            for module, training in modes:
                module.training = training
            with torch.no_grad():
                for module, name, buffer, value in buffers:
                    if not torch.equal(buffer, value):  # written only then: a pending backward pass may have saved it
                        buffer.copy_(value)
                    setattr(module, name, buffer)


@contextmanager
def eager() -> Iterator[None]:
    """Run compiled submodules uncompiled: in compiled code no hook fires."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and its import takes seconds
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
