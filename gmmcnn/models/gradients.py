"""Gradients of the loss sample by sample: how much each one pulls at a network, and at each of its filters.

One backward pass a sample would be slow, and all gradients at once would not fit: samples are vectorised in groups
(``torch.func``), and only norms leave a group. A network that cannot be vectorised (its forward pass asks for a number
by ``.item()``, or takes its way by one) is gone through sample by sample.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from gmmcnn.errors import ModelError, one_line
from gmmcnn.hardware.device import device_of
from gmmcnn.models.foreign import CONVOLUTIONS, outcome, runnable, undisturbed

BYTES_PER_GROUP = 256 * 2**20
"""Memory for the gradients of the samples that are vectorised together."""


@dataclass(frozen=True)
class SampleGradients:
    """Gradients of S samples' cross-entropy losses.

    Attributes
    ----------
    norm : (S,) float64
        Euclidean norm over all parameters that are trained: frozen ones (``requires_grad=False``) have no gradient, and
        one that several layers share counts once, with the sum of what they contribute.
    filters : dict of (S, C) float64
        By layer: norm over each filter's own weights and bias, 0 where those are frozen. Where the weights are computed
        from others (weight_norm), over those others that belong to one filter.
    loss : (S,) float64
        Cross-entropy in nats.
    error : (S,) float64
        1 - p, p the probability that the network gives to the sample's label.
    """

    norm: NDArray[np.float64]
    filters: dict[str, NDArray[np.float64]]
    loss: NDArray[np.float64]
    error: NDArray[np.float64]

    @property
    def per_error(self) -> NDArray[np.float64]:
        """(S,) norm per unit error: what the sample's place in the network adds to how wrong it is."""
        return self.norm / np.maximum(self.error, np.finfo(np.float64).tiny)


_Norms = tuple[Tensor, dict[str, Tensor], Tensor]
"""Norm over all parameters, norms over each layer's filters, and logits, of one sample or of several."""


def sample_gradients(
    model: nn.Module, images: Tensor, labels: Tensor, *, bytes_per_group: int = BYTES_PER_GROUP
) -> SampleGradients:
    """Gradient norms of every sample, the model in eval mode.

    Parameters
    ----------
    model : nn.Module
        Comes back as it was.
    images : (S, C, H, W) float32
        Taken to the model's device, as the labels are.
    labels : (S,) int64
    bytes_per_group : int
        Bounds the memory: so many samples are taken together as have gradients of this size. The norms do not depend
        on it beyond rounding.

    Raises
    ------
    ModelError
        The model does not run on one image, gives no logits (1, classes), has no parameter that is trained, or cannot
        be differentiated.
    """
    network = runnable(model, ModelError)
    trained = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    if not trained:
        raise ModelError(f"{type(network).__name__} has no parameter with requires_grad, so there are no gradients")
    own = _parameters_of_filters(network)
    images, labels = (tensor.to(device_of(network)) for tensor in (images, labels))

    def norms_of(gradients: dict[str, Tensor], logits: Tensor) -> _Norms:
        squares = torch.stack([gradient.square().sum() for gradient in gradients.values()])
        return squares.sum().sqrt(), {layer: _filter_norms(gradients, *own[layer]) for layer in own}, logits

    group = max(1, bytes_per_group // sum(4 * parameter.numel() for parameter in trained.values()))
    with undisturbed(network):
        _require_logits(network, images[:1], labels)
        try:
            parts = _vectorised(network, trained, norms_of, images, labels, group)
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception:  # noqa: BLE001 - which of the many ways not to be vectorisable this is, is no matter
            parts = _one_by_one(network, trained, norms_of, images, labels)
    log_p = F.log_softmax(torch.cat([logits for _, _, logits in parts]).double(), dim=1)
    loss = -log_p.gather(1, labels[:, None])[:, 0].cpu().numpy()
    return SampleGradients(
        norm=torch.cat([norm for norm, _, _ in parts]).double().cpu().numpy(),
        filters={layer: torch.cat([of[layer] for _, of, _ in parts]).double().cpu().numpy() for layer in own},
        loss=loss,
        error=-np.expm1(-loss),
    )


def _vectorised(
    model: nn.Module,
    trained: dict[str, nn.Parameter],
    norms_of: Callable[[dict[str, Tensor], Tensor], _Norms],
    images: Tensor,
    labels: Tensor,
    group: int,
) -> list[_Norms]:
    values = {name: parameter.detach() for name, parameter in trained.items()}
    held = {name: parameter.detach() for name, parameter in model.named_parameters() if name not in trained}
    held |= dict(model.named_buffers())

    def loss_of(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        logits = functional_call(model, (parameters, held), (image[None],))
        return F.cross_entropy(logits.double(), label[None]), logits[0]  # float32 rounds 1 - p to 0 too soon

    def of_one(image: Tensor, label: Tensor) -> _Norms:
        gradients, (_, logits) = grad_and_value(loss_of, has_aux=True)(values, image, label)
        return norms_of(gradients, logits)

    with torch.no_grad():
        return [
            vmap(of_one)(some, expected)
            for some, expected in zip(images.split(group), labels.split(group), strict=True)
        ]


def _one_by_one(
    model: nn.Module,
    trained: dict[str, nn.Parameter],
    norms_of: Callable[[dict[str, Tensor], Tensor], _Norms],
    images: Tensor,
    labels: Tensor,
) -> list[_Norms]:
    """The same by one backward pass a sample, in the model as it is."""
    parts: list[_Norms] = []
    for image, label in zip(images, labels, strict=True):
        with torch.enable_grad():
            logits = outcome(model, image[None], ModelError)
            loss = F.cross_entropy(logits.double(), label[None])
            try:
                found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
            except RuntimeError as error:
                raise ModelError(f"{type(model).__name__} cannot be differentiated: {one_line(error)}") from error
        gradients = {
            name: torch.zeros_like(parameter) if gradient is None else gradient
            for (name, parameter), gradient in zip(trained.items(), found, strict=True)
        }
        with torch.no_grad():
            norm, filters, own = norms_of(gradients, logits[0].detach())
        parts.append((norm[None], {layer: values[None] for layer, values in filters.items()}, own[None]))
    return parts


def _require_logits(model: nn.Module, image: Tensor, labels: Tensor) -> None:
    """Raise ModelError where a model gives something else than one row of logits, or not for every label."""
    with torch.no_grad():
        logits = outcome(model, image, ModelError)
    if not (isinstance(logits, Tensor) and logits.ndim == 2 and len(logits) == 1 and logits.is_floating_point()):
        given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(f"{type(model).__name__} gives {given} for one image; expected logits (1, classes)")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
        raise ModelError(
            f"labels run from {int(labels.min())} to {int(labels.max())}, and {type(model).__name__} tells "
            f"{logits.shape[1]} classes apart; expected labels from 0 to {logits.shape[1] - 1}"
        )


def _parameters_of_filters(model: nn.Module) -> dict[str, tuple[list[tuple[str, int]], int]]:
    """Of each convolution: the parameters that belong to one filter each, with their axis of filters, and their number.

    A shared parameter has the name of the first module that owns it.
    """
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {}
    for layer, module in model.named_modules():
        if isinstance(module, CONVOLUTIONS):
            n_filters = module.out_channels
            axes = [
                (first[id(parameter)], 1 if module.transposed and parameter.ndim > 2 else 0)
                for parameter in module.parameters()
            ]
            shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
            found[layer] = (
                [(name, axis) for name, axis in axes if shapes[name][axis : axis + 1] == (n_filters,)],
                n_filters,
            )
    return found


def _filter_norms(gradients: dict[str, Tensor], own: list[tuple[str, int]], n_filters: int) -> Tensor:
    """(C,) norms over what belongs to each filter of a layer."""
    squares = [
        gradients[name].square().movedim(axis, 0).reshape(n_filters, -1).sum(dim=1)
        for name, axis in own
        if name in gradients
    ]
    return torch.stack(squares).sum(dim=0).sqrt() if squares else torch.zeros(n_filters)
