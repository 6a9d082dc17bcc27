"""Other scores of how odd a training sample is: what one would use without clustering a filter.

Every score is higher for odder samples. They differ in what they need, which is told beside each: the data alone, the
network as it was trained in the end, or its checkpoints.

Sources: EL2N, GraNd: Paul, Ganguli, Dziugaite, *Deep Learning on a Data Diet*, 2021. VoG: Agarwal, D'souza, Hooker,
*Estimating Example Difficulty using Variance of Gradients*, 2022. Self-influence: Pruthi, Liu, Kale, Sundararajan,
*Estimating Training Data Influence by Tracing Gradient Descent*, 2020. Confident learning: Northcutt, Jiang, Chuang,
2021.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from torch import Tensor, nn

from gmmcnn.data.splits import Images
from gmmcnn.featuremaps.capture import find_taps
from gmmcnn.featuremaps.stream import feature_maps
from gmmcnn.hardware.device import device_of, uploaded
from gmmcnn.models.gradients import sample_gradients
from gmmcnn.models.training import modes_restored

NEIGHBOURS = 10
FOLDS = 5
PENALTY = 3.0
"""C of the logistic regressions, on features of mean squared length 1; 0.3 and 30 give lower AUCs or equal ones."""
EARLY_SHARE = 0.1
"""EL2N and GraNd are taken early: at the first checkpoint after this share of the training."""
FINAL, DATA, TRAINING = "final network", "data", "checkpoints"
NEEDS = {
    "final loss": FINAL,
    "EL2N, final": FINAL,
    "gradient norm, final": FINAL,
    "k-NN, last maps": FINAL,
    "confident learning, last maps": FINAL,
    "cleanlab, last maps": FINAL,
    "k-NN, pixels": DATA,
    "confident learning, pixels": DATA,
    "mean loss": TRAINING,
    "EL2N, early": TRAINING,
    "GraNd, early": TRAINING,
    "self-influence": TRAINING,
    "VoG": TRAINING,
}
"""Score → what it needs."""


def scores(
    model_after: Callable[[int], nn.Module], n_checkpoints: int, samples: Images, layer: str
) -> dict[str, NDArray[np.float64]]:
    """Score training samples in every way but ours.

    Parameters
    ----------
    model_after : callable
        Number of a checkpoint, from 1 → network with its weights.
    n_checkpoints : int
    samples : Images
        N training samples with the labels trained on.
    layer : str
        Convolution whose maps stand for what the network sees: its last one.

    Returns
    -------
    dict of name → (N,) float64
        In the order of :data:`NEEDS`; without cleanlab where it is not installed.
    """
    labels = samples.labels.numpy()
    final, early = model_after(n_checkpoints), model_after(max(1, round(EARLY_SHARE * n_checkpoints)))
    maps = last_maps(final, samples.images, layer)
    pixels = samples.images.flatten(1).numpy()
    some = [model_after(number) for number in _some(n_checkpoints)]
    losses = np.stack([loss(model_after(number), samples) for number in range(1, n_checkpoints + 1)])
    by_maps, by_pixels = left_out_probabilities(maps, labels), left_out_probabilities(pixels, labels)
    found = {
        "final loss": losses[-1],
        "EL2N, final": el2n(final, samples),
        "gradient norm, final": sample_gradients(final, samples.images, samples.labels).norm,
        "k-NN, last maps": disagreement(maps, labels),
        "confident learning, last maps": doubt(by_maps, labels),
        "k-NN, pixels": disagreement(pixels, labels),
        "confident learning, pixels": doubt(by_pixels, labels),
        "mean loss": losses.mean(axis=0),
        "EL2N, early": el2n(early, samples),
        "GraNd, early": sample_gradients(early, samples.images, samples.labels).norm,
        "self-influence": self_influence(some, samples),
        "VoG": vog(some, samples),
    }
    if find_spec("cleanlab"):
        rank = import_module("cleanlab.rank")
        quality = rank.get_label_quality_scores(labels, by_maps, method="normalized_margin")
        found["cleanlab, last maps"] = -np.asarray(quality, float)
    return {name: found[name] for name in NEEDS if name in found}


def _some(n_checkpoints: int, number: int = 5) -> list[int]:
    """A few checkpoints, evenly spaced, the last among them."""
    return sorted({round(n) for n in np.linspace(n_checkpoints / number, n_checkpoints, number) if round(n) >= 1})


def logits(model: nn.Module, images: Tensor, *, batch_size: int = 500) -> Tensor:
    """(N, n_classes) of a model in eval mode, in host memory."""
    with modes_restored(model), torch.no_grad():
        model.eval()
        batches = uploaded(((batch,) for batch in images.split(batch_size)), device_of(model))
        return torch.cat([model(batch).cpu() for (batch,) in batches])


def loss(model: nn.Module, samples: Images) -> NDArray[np.float64]:
    """(N,) cross-entropies in nats."""
    return F.cross_entropy(logits(model, samples.images).double(), samples.labels, reduction="none").numpy()


def el2n(model: nn.Module, samples: Images) -> NDArray[np.float64]:
    """(N,) Euclidean distances between the probabilities and the one-hot label."""
    probabilities = logits(model, samples.images).double().softmax(dim=1)
    return (probabilities - F.one_hot(samples.labels, probabilities.shape[1])).norm(dim=1).numpy()


def self_influence(models: Sequence[nn.Module], samples: Images) -> NDArray[np.float64]:
    """(N,) sum over checkpoints of the squared norm of the loss's gradient by all parameters.

    TracIn's influence of a sample on its own loss, for a learning rate that is the same at every checkpoint.
    """
    norms = [sample_gradients(model, samples.images, samples.labels).norm for model in models]
    return np.square(norms).sum(axis=0)


def vog(models: Sequence[nn.Module], samples: Images) -> NDArray[np.float64]:
    """(N,) variance of the gradient of the label's logit over checkpoints, mean over pixels, normalised by class."""
    gradients = torch.stack([_pixel_gradients(model, samples) for model in models])
    variances = gradients.std(dim=0).flatten(1).mean(dim=1).double().numpy()
    labels = samples.labels.numpy()
    for label in np.unique(labels):
        members = variances[labels == label]
        variances[labels == label] = (members - members.mean()) / max(members.std(), np.finfo(float).tiny)
    return variances


def _pixel_gradients(model: nn.Module, samples: Images, *, batch_size: int = 250) -> Tensor:
    parts = []
    with modes_restored(model):
        model.eval()
        batches = zip(samples.images.split(batch_size), samples.labels.split(batch_size), strict=True)
        for batch, labels in uploaded(batches, device_of(model)):
            images = batch.clone().requires_grad_()
            chosen = model(images).gather(1, labels[:, None]).sum()
            parts.append(torch.autograd.grad(chosen, images)[0].cpu())
    return torch.cat(parts)


def last_maps(model: nn.Module, images: Tensor, layer: str) -> NDArray[np.float32]:
    """(N, F * P) feature maps of one layer, all its filters side by side."""
    taps = find_taps(model, images[:2], layers=[layer])
    maps = feature_maps(model, images, taps).by_layer[layer]
    return np.ascontiguousarray(maps.transpose(1, 0, 2)).reshape(len(images), -1)


def disagreement(features: NDArray, labels: NDArray, neighbours: int = NEIGHBOURS) -> NDArray[np.float64]:
    """(N,) share of the nearest other samples that have another label."""
    features = features.astype(np.float64)
    squares = (features**2).sum(axis=1)
    distances = squares[:, None] + squares - 2 * features @ features.T
    np.fill_diagonal(distances, np.inf)
    nearest = np.argsort(distances, axis=1, kind="stable")[:, :neighbours]
    return (labels[nearest] != labels[:, None]).mean(axis=1)


def left_out_probabilities(features: NDArray, labels: NDArray) -> NDArray[np.float64]:
    """(N, n_classes) of a logistic regression that has not seen the sample: cross-validation in five folds.

    A class with fewer samples than folds has some folds without it, and is predicted there as never.
    """
    features = features.astype(np.float64) - features.mean(axis=0)
    if features.shape[1] > len(features):  # the same fit, in the space that the samples span
        directions, lengths, _ = np.linalg.svd(features, full_matrices=False)
        features = directions * lengths
    features /= max(np.sqrt((features**2).sum(axis=1).mean()), np.finfo(np.float64).tiny)  # 0 where all maps are dead
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    model = LogisticRegression(C=PENALTY, max_iter=500)
    return cross_val_predict(model, features, labels, cv=folds, method="predict_proba")


def doubt(probabilities: NDArray, labels: ArrayLike) -> NDArray[np.float64]:
    """(N,) one minus the probability of the sample's label: confident learning's ranking by self-confidence."""
    return 1 - np.take_along_axis(probabilities, np.asarray(labels)[:, None], axis=1)[:, 0]
