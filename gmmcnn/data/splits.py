"""Training and validation images, and how they are drawn from a data set.

Every draw has its own random stream, keyed by (seed, purpose). So the same seed holds out the same images whatever the
size of the training set, and a smaller training set is part of a larger one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gmmcnn.constants import Stream
from gmmcnn.errors import ConfigurationError


@dataclass(frozen=True, eq=False)
class Images:
    """Images with their labels.

    Attributes
    ----------
    images : (N, C, H, W) float32
        Grey values or colours from 0 to 1, black to full, for the built-in data sets.
    labels : (N,) int64
        Class of each image, from 0.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


class Pool(Protocol):
    """Labelled images that samples are taken from."""

    def __len__(self) -> int: ...

    def take(self, indices: NDArray[np.int64]) -> Images:
        """Return the samples at ``indices``, in this order."""
        ...


@dataclass(frozen=True, eq=False)
class Source:
    """A data set as its files give it.

    Attributes
    ----------
    description : str
        What the images show and where they come from, in a few words.
    class_names : tuple of str, or None
        None where the data set does not name its classes.
    train, validation : Pool
        ``validation`` is None where the data set has no split of its own.
    """

    description: str
    class_names: tuple[str, ...] | None
    train: Pool
    validation: Pool | None


@dataclass(frozen=True, eq=False)
class BytePool:
    """Images of bytes, scaled to 0 … 1 when they are taken.

    Attributes
    ----------
    images : (N, C, H, W) uint8
    labels : (N,) uint8
    white : int
        The byte that becomes 1.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    white: int = 255

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: NDArray[np.int64]) -> Images:
        """Return the samples at ``indices`` as float32 images and int64 labels."""
        images = torch.from_numpy(self.images[indices]).to(torch.float32).div_(self.white)
        return Images(images, torch.from_numpy(self.labels[indices].astype(np.int64)))


@dataclass(frozen=True, eq=False)
class Splits:
    """A data set, ready for training.

    Attributes
    ----------
    name : str
        As in ``data.name``.
    description : str
        One line for a reader who sees the data set for the first time.
    class_names : tuple of str
    train, validation : Images
    train_indices : (N,) int64
        Where each training sample stands in the data set's own training images, ascending.
    noisy : (M,) int64
        Positions in ``train`` of the samples whose label was replaced by another, ascending.
    original_labels : (M,) int64
        The labels that the ``noisy`` samples had.
    planted : mapping of int to str
        Position in ``train`` of every sample that was planted there → its kind, as in :mod:`gmmcnn.data.planting`.
    """

    name: str
    description: str
    class_names: tuple[str, ...]
    train: Images
    validation: Images
    train_indices: Tensor
    noisy: Tensor
    original_labels: Tensor
    planted: Mapping[int, str] = field(default_factory=dict)

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def in_channels(self) -> int:
        """Channels of an image: 1 for grey, 3 for colour."""
        return self.train.images.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of an image in pixels."""
        height, width = self.train.images.shape[2:]
        return height, width


def hold_out(n_samples: int, share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Part ``n_samples`` indices into those for training and those for validation, each ascending."""
    n_validation = round(share * n_samples)
    if not 0 < n_validation < n_samples:
        raise ConfigurationError(
            f"data.validation_share={share}: leaves {n_validation} of {n_samples} samples for validation; "
            "expected at least one for each side"
        )
    order = np.random.default_rng([seed, Stream.HOLD_OUT]).permutation(n_samples)
    return np.sort(order[n_validation:]), np.sort(order[:n_validation])


def subset(indices: NDArray[np.int64], n_samples: int | None, seed: int) -> NDArray[np.int64]:
    """Draw ``n_samples`` of ``indices`` (None: all), ascending."""
    if n_samples is None:
        return indices
    if n_samples > len(indices):
        raise ConfigurationError(
            f"data.train_samples={n_samples}: the data set has {len(indices)} training samples; expected at most those"
        )
    order = np.random.default_rng([seed, Stream.TRAINING_SUBSET]).permutation(len(indices))
    return np.sort(indices[order[:n_samples]])


def replace_labels(labels: Tensor, share: float, n_classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Give a share of the samples the label of another class.

    Parameters
    ----------
    labels : (N,) int64
    share : float
        Rounded to whole samples: exactly ``round(share * N)`` labels change.

    Returns
    -------
    labels : (N,) int64
        A new tensor; each other class is equally likely.
    noisy : (M,) int64
        Indices of the samples whose label changed, ascending.
    """
    n_noisy = round(share * len(labels))
    if n_noisy and n_classes < 2:
        raise ConfigurationError(f"data.label_noise={share}: the data set has {n_classes} class; expected at least 2")
    rng = np.random.default_rng([seed, Stream.WRONG_LABELS])
    noisy = torch.from_numpy(np.sort(rng.permutation(len(labels))[:n_noisy]))
    shifts = torch.from_numpy(rng.integers(1, max(n_classes, 2), size=n_noisy))
    noised = labels.clone()
    noised[noisy] = (labels[noisy] + shifts) % n_classes
    return noised, noisy
