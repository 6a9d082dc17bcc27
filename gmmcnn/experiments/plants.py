"""Training samples that a network can only memorise, planted so that one knows what there is to find.

Every planted image has valid pixels, from 0 to 1. Some have a wrong label, some an image that does not belong to the
data set, some both. A near-duplicate with the right label is planted as a control: it is odd to look for, and nothing
has to be memorised to fit it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.datasets import load_sample_images
from torch import Tensor

from gmmcnn.constants import Stream
from gmmcnn.data import digits
from gmmcnn.data.splits import Images, Splits
from gmmcnn.errors import ConfigurationError

CONTROL = "near-duplicate"
"""Planted kind that need not be memorised: it counts among the samples that nothing is wrong with."""
_OCCLUDED = 0.55
"""Side of the square that hides a part of an image, as a share of the image's."""
_CORRUPTED = 0.4
"""Share of a corrupted image's pixels that are black or white."""
_CROP = (40, 200)
"""Side of a crop of a photograph in its own pixels, at least and at most."""


@dataclass(frozen=True, eq=False)
class Planted:
    """A data set with planted training samples.

    Attributes
    ----------
    data : Splits
        ``train`` holds the planted images and labels; the rest is as it was.
    kinds : (N,) str
        What each training sample was planted as, a kind of :data:`KINDS`; empty for the others.
    """

    data: Splits
    kinds: NDArray[np.str_]

    def without(self) -> Splits:
        """The same training samples but for the planted ones."""
        rest = torch.from_numpy(np.flatnonzero(self.kinds == ""))
        train = Images(self.data.train.images[rest], self.data.train.labels[rest])
        return replace(self.data, train=train, train_indices=self.data.train_indices[rest])


def plant(data: Splits, number: int, *, seed: int) -> Planted:
    """Replace training samples by planted ones.

    Parameters
    ----------
    data : Splits
        Images from 0 to 1, labels that are right.
    number : int
        Samples of each kind.
    seed : int
        Of their choice, their images and their labels.

    Raises
    ------
    ConfigurationError
        There are fewer than twice as many training samples as are to be planted, or fewer than 2 classes.
    """
    needed = 2 * number * len(KINDS)
    if len(data.train) < needed or data.n_classes < 2:
        raise ConfigurationError(
            f"experiment.train_samples={len(data.train)}, {data.n_classes} classes: "
            f"expected at least {needed} samples to plant {number} of each of {len(KINDS)} kinds, and 2 classes"
        )
    rng = np.random.default_rng([seed, Stream.PLANTED_FOR_EXPERIMENTS])
    images, labels = data.train.images.clone(), data.train.labels.clone()
    order = torch.from_numpy(rng.permutation(len(labels)))
    kinds = np.full(len(labels), "", dtype=f"<U{max(map(len, KINDS))}")
    for place, (kind, (alter, relabel)) in enumerate(KINDS.items()):
        chosen = order[place * number : (place + 1) * number]
        spare = order[len(order) - (place + 1) * number : len(order) - place * number]  # of which nothing is planted
        material = Images(data.train.images[spare], data.train.labels[spare])
        altered = alter(Images(images[chosen], labels[chosen]), material, data, rng)
        images[chosen] = altered.images
        labels[chosen] = relabel(altered.labels, data.n_classes, rng)
        kinds[chosen.numpy()] = kind
    return Planted(replace(data, train=Images(images, labels)), kinds)


Alter = Callable[[Images, Images, Splits, np.random.Generator], Images]
"""(samples, others of the same number, the data set, random numbers) → samples"""
Relabel = Callable[[Tensor, int, np.random.Generator], Tensor]


def _unchanged(samples: Images, others: Images, data: Splits, rng: np.random.Generator) -> Images:
    return samples


def _foreign(samples: Images, others: Images, data: Splits, rng: np.random.Generator) -> Images:
    """Images of another data set: digits, or crops of photographs where the data set is the digits."""
    n_images, channels, *size = samples.images.shape
    if data.name == "digits":
        found = torch.cat([F.interpolate(crop, size=size, mode="area") for crop in _crops(n_images, rng)])
        return Images(found.mean(dim=1, keepdim=True).expand(-1, channels, -1, -1), samples.labels)
    pool = digits.source(None).train
    found = pool.take(rng.permutation(len(pool))[:n_images]).images
    return Images(F.interpolate(found, size=size, mode="bilinear").expand(-1, channels, -1, -1), samples.labels)


def _crops(number: int, rng: np.random.Generator) -> list[Tensor]:
    """Squares (1, 3, h, h) of the photographs that come with scikit-learn."""
    photographs = load_sample_images().images
    crops = []
    for _ in range(number):
        photograph = photographs[rng.integers(len(photographs))]
        side = int(rng.integers(*_CROP))
        top, left = (int(rng.integers(extent - side)) for extent in photograph.shape[:2])
        crop = photograph[top : top + side, left : left + side].astype(np.float32) / 255
        crops.append(torch.from_numpy(crop.transpose(2, 0, 1))[None])
    return crops


def _noise(samples: Images, others: Images, data: Splits, rng: np.random.Generator) -> Images:
    """Gaussian noise of five standard deviations of the data's pixels, clipped to valid ones."""
    pixels = data.train.images
    noise = rng.normal(float(pixels.mean()), 5 * float(pixels.std()), size=samples.images.shape)
    return Images(torch.from_numpy(noise.clip(0, 1).astype(np.float32)), samples.labels)


def _inverted(samples: Images, others: Images, data: Splits, rng: np.random.Generator) -> Images:
    return Images(1 - samples.images, samples.labels)


def _occluded(samples: Images, others: Images, data: Splits, rng: np.random.Generator) -> Images:
    """Hide a square under black or white."""
    images = samples.images.clone()
    height, width = (round(_OCCLUDED * extent) for extent in images.shape[2:])
    for image in images:
        top = int(rng.integers(image.shape[1] - height + 1))
        left = int(rng.integers(image.shape[2] - width + 1))
        image[:, top : top + height, left : left + width] = float(rng.integers(2))
    return Images(images, samples.labels)


def _corrupted(samples: Images, others: Images, data: Splits, rng: np.random.Generator) -> Images:
    """Let many pixels be black or white, salt and pepper."""
    hit = torch.from_numpy(rng.random(samples.images.shape) < _CORRUPTED)
    grains = torch.from_numpy(rng.integers(0, 2, size=samples.images.shape).astype(np.float32))
    return Images(torch.where(hit, grains, samples.images), samples.labels)


def _near_duplicate(samples: Images, others: Images, data: Splits, rng: np.random.Generator) -> Images:
    """Copy other training samples, with a little noise on them."""
    noise = torch.from_numpy(rng.normal(0, 0.03, size=others.images.shape).astype(np.float32))
    return Images((others.images + noise).clamp(0, 1), others.labels)


def _own(labels: Tensor, n_classes: int, rng: np.random.Generator) -> Tensor:
    return labels


def _any_other(labels: Tensor, n_classes: int, rng: np.random.Generator) -> Tensor:
    """Symmetric label noise: every other class is equally likely."""
    return (labels + torch.from_numpy(rng.integers(1, n_classes, size=len(labels)))) % n_classes


def _next(labels: Tensor, n_classes: int, rng: np.random.Generator) -> Tensor:
    """Asymmetric label noise: each class is always mistaken for the same other one."""
    return (labels + 1) % n_classes


KINDS: dict[str, tuple[Alter, Relabel]] = {
    "wrong label": (_unchanged, _any_other),
    "wrong label, next class": (_unchanged, _next),
    "foreign": (_foreign, _own),
    "noise": (_noise, _own),
    "inverted": (_inverted, _own),
    "inverted, wrong label": (_inverted, _any_other),
    "occluded": (_occluded, _own),
    "occluded, wrong label": (_occluded, _any_other),
    "corrupted": (_corrupted, _own),
    "corrupted, wrong label": (_corrupted, _any_other),
    CONTROL: (_near_duplicate, _own),
    f"{CONTROL}, wrong label": (_near_duplicate, _any_other),
}
"""Kind → what is done to the image, and to the label. Foreign images and noise have the label of what they replace."""
