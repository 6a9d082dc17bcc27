"""Odd samples planted in a training set on purpose, so that what a network memorises is known.

Every image keeps to the range of the data: a *wrong label* on an image as it is, or an image that is *foreign* to the
data set under its own label, by turns inverted and uniform noise.
"""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import torch

from gmmcnn.constants import Stream
from gmmcnn.data.splits import Images
from gmmcnn.errors import ConfigurationError

WRONG_LABEL, INVERTED, UNIFORM_NOISE, NOISE = "wrong_label", "inverted", "uniform_noise", "noise"
"""Kinds of planted samples; ``noise`` are images of the probe set alone, which no network has been trained on."""
FOREIGN = (INVERTED, UNIFORM_NOISE)

Planted = Mapping[int, str]
"""Position of a planted sample in the training set → its kind."""
NOTHING: Planted = MappingProxyType({})


def plant(
    train: Images, n_wrong_labels: int, n_foreign: int, n_classes: int, seed: int, *, spared: torch.Tensor
) -> tuple[Images, Planted]:
    """Plant wrong labels and foreign images.

    Parameters
    ----------
    train : Images
    n_wrong_labels, n_foreign : int
        How many.
    n_classes : int
        Each other class is equally likely to be the wrong one.
    seed : int
    spared : (M,) int64
        Positions of samples that are left as they are: those whose label is wrong already.

    Returns
    -------
    Images
        New tensors where anything was planted.
    Planted

    Raises
    ------
    ConfigurationError
        There are too few samples, or only one class.
    """
    wanted = n_wrong_labels + n_foreign
    if not wanted:
        return train, NOTHING
    available = np.setdiff1d(np.arange(len(train)), spared.numpy())
    setting = f"data.plant_wrong_labels={n_wrong_labels}, data.plant_foreign={n_foreign}"
    if wanted > len(available):
        raise ConfigurationError(
            f"{setting}: {len(available)} training samples can be replaced; expected at most those"
        )
    if n_wrong_labels and n_classes < 2:
        raise ConfigurationError(f"{setting}: the data set has {n_classes} class; expected at least 2 for wrong labels")
    rng = np.random.default_rng([seed, Stream.PLANTED])
    chosen = rng.permutation(available)[:wanted]
    kinds = [WRONG_LABEL] * n_wrong_labels + [FOREIGN[number % len(FOREIGN)] for number in range(n_foreign)]
    shifts = rng.integers(1, max(n_classes, 2), size=n_wrong_labels)
    images, labels = train.images.clone(), train.labels.clone()
    for position, shift in zip(chosen[:n_wrong_labels].tolist(), shifts.tolist(), strict=True):
        labels[position] = (labels[position] + shift) % n_classes
    low, high = float(images.min()), float(images.max())
    for position, kind in zip(chosen.tolist(), kinds, strict=True):
        if kind == INVERTED:
            images[position] = low + high - images[position]
        elif kind == UNIFORM_NOISE:
            images[position] = torch.from_numpy(rng.uniform(low, high, images.shape[1:]))
    return Images(images, labels), dict(zip(chosen.tolist(), kinds, strict=True))
