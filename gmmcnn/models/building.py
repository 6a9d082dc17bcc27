"""From ``model.name`` to a network with weights drawn by seed."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from gmmcnn import config
from gmmcnn.errors import ModelError, one_line
from gmmcnn.models.plain import AlexNet, LeNet5, SimpleCNN
from gmmcnn.models.resnet import resnet8, resnet20
from gmmcnn.names import check_arguments, import_dotted, is_dotted, unknown

BUILT_IN: dict[str, Callable[..., nn.Module]] = {
    "simple_cnn": SimpleCNN,
    "lenet5": LeNet5,
    "alexnet": AlexNet,
    "resnet8": resnet8,
    "resnet20": resnet20,
}
"""Built-in networks; each takes ``in_channels``, ``image_size`` and ``n_classes``, and what ``model.kwargs`` adds."""


def build(
    settings: config.Model, *, in_channels: int, image_size: tuple[int, int], n_classes: int, seed: int
) -> nn.Module:
    """Build a network for images of one shape, with initial weights that depend on the seed alone.

    The random state of torch is left as it was. A network by dotted name is called with ``model.kwargs`` and nothing
    else. Every network is tried on two blank images before it is returned.

    Parameters
    ----------
    settings : config.Model
        ``checkpoint`` is not looked at; see :func:`gmmcnn.models.load_checkpoint`.
    in_channels : int
        Channels of an image.
    image_size : (H, W)
        Pixels of an image.
    n_classes : int
        Number of logits.
    seed : int

    Returns
    -------
    nn.Module
        On the CPU, in training mode.

    Raises
    ------
    ConfigurationError
        The name is misspelt or cannot be imported, or ``model.kwargs`` do not fit it.
    ModelError
        The network cannot be built, or does not map images of this shape to ``n_classes`` logits.
    """
    kwargs = dict(settings.kwargs)
    if is_dotted(settings.name):
        factory = import_dotted("model.name", settings.name)
    elif settings.name in BUILT_IN:
        factory = BUILT_IN[settings.name]
        _check_image_size(settings.name, image_size, getattr(factory, "smallest_image", (1, 1)))
        kwargs |= {"in_channels": in_channels, "image_size": image_size, "n_classes": n_classes}
    else:
        raise unknown("model.name", settings.name, BUILT_IN)
    check_arguments("model.kwargs", factory, kwargs)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _call(settings.name, factory, kwargs)
        _try(settings.name, model, (in_channels, *image_size), n_classes)
    return model


def _check_image_size(name: str, image_size: tuple[int, int], smallest: tuple[int, int]) -> None:
    if image_size[0] < smallest[0] or image_size[1] < smallest[1]:
        raise ModelError(
            f"{name}: images of {image_size[0]} × {image_size[1]} pixels; "
            f"expected at least {smallest[0]} × {smallest[1]}"
        )


def _call(name: str, factory: Callable[..., Any], kwargs: dict[str, Any]) -> nn.Module:
    try:
        model = factory(**kwargs)
    except (Exception, SystemExit) as error:  # whatever the user's class raises
        raise ModelError(f"{name}: cannot be built with {kwargs} ({one_line(error)}); see model.kwargs") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{name}: returned a {type(model).__name__}; expected a torch.nn.Module")
    return model


def _try(name: str, model: nn.Module, image_shape: tuple[int, ...], n_classes: int) -> None:
    """Raise ModelError unless ``model`` maps blank images (2, C, H, W) to logits (2, n_classes)."""
    model.eval()  # so that no running mean of a BatchNorm moves
    try:
        with torch.no_grad():
            logits = model(torch.zeros(2, *image_shape))
    except (Exception, SystemExit) as error:  # whatever the user's forward raises
        raise ModelError(
            f"{name}: fails on images of shape {image_shape} ({one_line(error)}); see model.kwargs"
        ) from error
    finally:
        model.train()
    shape = tuple(getattr(logits, "shape", ()))
    if shape != (2, n_classes):
        raise ModelError(
            f"{name}: maps 2 images to {shape or type(logits).__name__}; expected logits of shape (2, {n_classes}): "
            "set the number of classes in model.kwargs"
        )
