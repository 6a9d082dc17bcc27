"""Gradients of the loss sample by sample: how much each one pulls at a network, and at each of its filters.

One backward pass a sample would be slow, and all gradients at once would not fit: samples are vectorised in groups
(``torch.func``), and only norms leave a group.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from gmmcnn.models.training import modes_restored

BYTES_PER_GROUP = 256 * 2**20
"""Memory for the gradients of the samples that are vectorised together."""


@dataclass(frozen=True)
class SampleGradients:
    """Gradients of S samples' cross-entropy losses.

    Attributes
    ----------
    norm : (S,) float64
        Euclidean norm over all parameters.
    filters : dict of (S, C) float64
        By layer: norm over each filter's own weights and bias.
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


def sample_gradients(
    model: nn.Module, images: Tensor, labels: Tensor, *, bytes_per_group: int = BYTES_PER_GROUP
) -> SampleGradients:
    """Gradient norms of every sample, the model in eval mode.

    Parameters
    ----------
    model : nn.Module
        Comes back as it was.
    images : (S, C, H, W) float32
    labels : (S,) int64
    bytes_per_group : int
        Bounds the memory: so many samples are taken together as have gradients of this size. The norms do not depend
        on it beyond rounding.
    """
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    buffers = dict(model.named_buffers())
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]

    def loss_of(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        logits = functional_call(model, (parameters, buffers), (image[None],))
        return F.cross_entropy(logits.double(), label[None]), logits[0]  # float32 rounds 1 - p to 0 too soon

    def norms_of(image: Tensor, label: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        gradients, (_, logits) = grad_and_value(loss_of, has_aux=True)(parameters, image, label)
        squares = torch.stack([gradient.square().sum() for gradient in gradients.values()])
        return squares.sum().sqrt(), {layer: _filter_norms(gradients, layer) for layer in layers}, logits

    group = max(1, bytes_per_group // sum(4 * parameter.numel() for parameter in parameters.values()))
    with modes_restored(model), torch.no_grad():
        model.eval()
        parts = [
            vmap(norms_of)(some, expected)
            for some, expected in zip(images.split(group), labels.split(group), strict=True)
        ]
    log_p = F.log_softmax(torch.cat([logits for _, _, logits in parts]).double(), dim=1)
    loss = -log_p.gather(1, labels[:, None])[:, 0].numpy()
    return SampleGradients(
        norm=torch.cat([norm for norm, _, _ in parts]).double().numpy(),
        filters={layer: torch.cat([filters[layer] for _, filters, _ in parts]).double().numpy() for layer in layers},
        loss=loss,
        error=-np.expm1(-loss),
    )


def _filter_norms(gradients: dict[str, Tensor], layer: str) -> Tensor:
    """(C,) norms over the weights and the bias of each filter of a layer."""
    squares = gradients[f"{layer}.weight"].flatten(1).square().sum(dim=1)
    bias = gradients.get(f"{layer}.bias")
    return (squares if bias is None else squares + bias.square()).sqrt()
