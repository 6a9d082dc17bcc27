"""Images of any source as blocks of samples, always in the same order."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler

from gmmcnn.errors import DataError
from gmmcnn.files import digest_tensors

Images = Tensor | NDArray | Dataset | DataLoader


class ImageBlocks:
    """Random access to blocks of images, so that an interrupted extraction goes on where it stopped.

    Parameters
    ----------
    images : Tensor, ndarray, Dataset or DataLoader
        Of a data set that gives tuples, the first element is the image. Of a DataLoader, the data set, the workers
        and the collate function are used; its samples come in the data set's own order, also where the loader
        shuffles.

    Raises
    ------
    DataError
        None of these, no samples, or a loader with a sampler of its own (a selection of samples is a ``Subset``).
    """

    def __init__(self, images: Images) -> None:
        self._loading: dict[str, Any] = {}
        if isinstance(images, DataLoader):
            _require_plain_order(images)
            names = ("num_workers", "collate_fn", "worker_init_fn", "multiprocessing_context", "timeout")
            self._loading = {name: getattr(images, name) for name in names}
            images = images.dataset
        if not hasattr(images, "__len__") or not hasattr(images, "__getitem__") or isinstance(images, IterableDataset):
            raise DataError(
                f"images: expected a Tensor, ndarray, map-style Dataset or DataLoader, got {type(images).__name__}"
            )
        self._images: Any = images
        self._is_array = isinstance(images, Tensor | np.ndarray)
        if len(self) == 0:
            raise DataError("images: there are no samples")

    def __len__(self) -> int:
        return len(self._images)

    def blocks(self, samples: Iterable[slice]) -> Iterator[Tensor]:
        """One (N, …) Tensor for each slice of samples."""
        if self._is_array:
            for block in samples:
                part = self._images[block]
                yield part if isinstance(part, Tensor) else torch.from_numpy(np.array(part))
            return
        indices = [list(range(len(self))[block]) for block in samples]
        for batch in DataLoader(self._images, batch_sampler=indices, **self._loading):
            image = batch[0] if isinstance(batch, Sequence) else batch
            if not isinstance(image, Tensor):
                raise DataError(
                    f"images: the data set gives {type(image).__name__}; expected a tensor, alone or first of a tuple"
                )
            yield image

    def fingerprint(self) -> str:
        """SHA-256 of all images of an array; of a data set, of its class, length, first and last image."""
        prefix = ""
        if self._is_array:
            step = max(1, (64 << 20) // max(1, self._images[:1].nbytes))
            samples = [slice(start, start + step) for start in range(0, len(self), step)]
        else:
            prefix = f"{type(self._images).__qualname__} {len(self)}"
            samples = [slice(0, 1), slice(len(self) - 1, len(self))]
        return digest_tensors(self.blocks(samples), prefix=prefix)


def _require_plain_order(loader: DataLoader) -> None:
    sampler, batch_sampler = loader.sampler, loader.batch_sampler
    plain_batches = batch_sampler is None or type(batch_sampler) is BatchSampler
    if not isinstance(sampler, SequentialSampler | RandomSampler) or not plain_batches:
        own = batch_sampler if not plain_batches else sampler
        raise DataError(
            f"images: the loader draws its samples by {type(own).__name__}; "
            "pass the data set, or a Subset(dataset, indices) of it"
        )
