"""What a user gives as samples: an array, a data set, or a loader and just the samples that it draws."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    default_collate,
)

from gmmcnn.errors import ConfigurationError


class Samples:
    """Samples of any source, by number.

    Parameters
    ----------
    given : Tensor, ndarray, Dataset or DataLoader
        Of a DataLoader, the samples that its sampler can draw, joined by its collate function: those of a
        ``SubsetRandomSampler`` in the order of its indices, else all of the data set in its own order.
    name : str
        What the user calls them, for messages.

    Raises
    ------
    ConfigurationError
        None of these, no samples, or a loader with a sampler of its own.
    """

    def __init__(self, given: Tensor | NDArray | Dataset | DataLoader, name: str) -> None:
        self._name = name
        self._collate = default_collate
        if isinstance(given, DataLoader):
            self._collate = given.collate_fn if given.batch_sampler is not None else default_collate
            given = _drawn_by(given, name)
        if not hasattr(given, "__len__") or not hasattr(given, "__getitem__") or isinstance(given, IterableDataset):
            raise ConfigurationError(
                f"{name}: a {type(given).__name__}; expected a Tensor, ndarray, map-style Dataset or DataLoader"
            )
        self._data: Any = given
        if len(self) == 0:
            raise ConfigurationError(f"{name}: there are no samples")

    def __len__(self) -> int:
        return len(self._data)

    def take(self, indices: range | NDArray[np.int64]) -> tuple[Tensor, Any]:
        """Images (N, C, H, W) of these samples, and what the data set gives second; None where that is nothing.

        Raises
        ------
        ConfigurationError
            The samples are no images.
        """
        beside = None
        if isinstance(self._data, Tensor | np.ndarray):
            rows = slice(indices.start, indices.stop) if isinstance(indices, range) else torch.from_numpy(indices)
            images = torch.as_tensor(self._data)[rows]
        else:
            images = self._collate([self._data[int(index)] for index in indices])
            if isinstance(images, tuple | list):
                images, beside = images[0], images[1] if len(images) > 1 else None
        if not isinstance(images, Tensor) or images.ndim != 4:
            found = f"shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
            raise ConfigurationError(f"{self._name}: {found} in a batch; expected a tensor (N, C, H, W)")
        return images, beside


def _drawn_by(loader: DataLoader, name: str) -> Dataset:
    """The part of the loader's data set that its sampler draws from."""
    sampler, batch_sampler = loader.sampler, loader.batch_sampler
    if batch_sampler is None or type(batch_sampler) is BatchSampler:
        if type(sampler) is SubsetRandomSampler:
            return Subset(loader.dataset, sampler.indices)
        # A subclass of DistributedSampler may wrap any other sampler, as Lightning's does; all processes of a plain
        # one see the whole data set between them.
        if isinstance(sampler, SequentialSampler | RandomSampler) or type(sampler) is DistributedSampler:
            return loader.dataset
        own: Any = sampler
    else:
        own = batch_sampler
    raise ConfigurationError(
        f"{name}: the loader draws its samples by {type(own).__name__}; "
        "give the data set, or a Subset(dataset, indices) of it"
    )
