"""Any map-style data set (``__len__`` and ``__getitem__`` returning image and label), by the dotted name of its class.

Its samples are read once, into memory, and of the training side only those that ``data.train_samples`` draws.
Augmentation at random is thus frozen: each sample is one fixed image, as clustering its feature maps needs.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset

from gmmcnn import config
from gmmcnn.constants import Stream
from gmmcnn.data.samples import as_image, class_numbers, read_sample, stacked
from gmmcnn.data.splits import Images, Source
from gmmcnn.errors import ConfigurationError, DataError, one_line
from gmmcnn.names import accepts, check_arguments, import_dotted


def source(settings: config.Data, seed: int) -> Source:
    """Call the class with ``data.kwargs``, and with ``root=`` where ``data.root`` is set.

    A class that takes ``train`` is called twice, with ``train=True`` and ``train=False``; any other once, and part of
    it is held out for validation.
    """
    factory = import_dotted("data.name", settings.name)
    kwargs = dict(settings.kwargs) | ({} if settings.root is None else {"root": settings.root})
    if accepts(factory, "train"):
        train = _open(settings.name, factory, kwargs | {"train": True}, seed)
        validation = _open(settings.name, factory, kwargs | {"train": False}, seed)
    else:
        train, validation = _open(settings.name, factory, kwargs, seed), None
    names = getattr(train.dataset, "classes", None)
    return Source("map-style data set", None if names is None else tuple(map(str, names)), train, validation)


@dataclass(frozen=True, eq=False)
class MapStylePool:
    """Samples of a map-style data set."""

    name: str
    dataset: Any
    seed: int

    def __len__(self) -> int:
        return len(self.dataset)

    def take(self, indices: NDArray[np.int64]) -> Images:
        """Read the samples at ``indices``; random transforms see random numbers that depend on the seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_seed_of_transforms(self.seed))
            samples = [self._read(index) for index in map(int, indices)]
        images = stacked([image for image, _ in samples], self.name, indices)
        return Images(images, torch.tensor([label for _, label in samples]))

    def _read(self, index: int) -> tuple[Tensor, int]:
        where, sample = f"{self.name}: sample {index}", read_sample(self.dataset, index, self.name)
        if not isinstance(sample, tuple | list) or len(sample) != 2:
            raise DataError(f"{where} is a {type(sample).__name__}; expected (image, label)")
        image = as_image(sample[0], where).to(torch.float32)
        if not image.isfinite().all():
            raise DataError(f"{where} has NaN or infinite pixels; expected finite ones")
        try:
            [label] = class_numbers([sample[1]], 1)
        except ConfigurationError as error:
            raise DataError(
                f"{self.name}: the label of sample {index} is {sample[1]!r}; expected a class number"
            ) from error
        return image, int(label)


def _open(name: str, factory: Any, kwargs: dict[str, Any], seed: int) -> MapStylePool:
    check_arguments("data.kwargs", factory, kwargs)
    try:
        dataset = factory(**kwargs)
    except (Exception, SystemExit) as error:  # whatever the user's class raises
        raise DataError(f"{name}: cannot be opened with {kwargs} ({one_line(error)}); see data.kwargs") from error
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise DataError(f"{name}: a {type(dataset).__name__} has no length or index; expected a map-style data set")
    if not len(dataset):
        raise DataError(f"{name}: has no samples with {kwargs}; expected at least one")
    return MapStylePool(name, dataset, seed)


def _seed_of_transforms(seed: int) -> int:
    """Seed for torch while samples are read: of no epoch (``[seed, epoch]``), nor of the initial weights (``seed``)."""
    drawn = np.random.SeedSequence([seed, 0, Stream.TRANSFORMS]).generate_state(1, np.uint64)[0]
    return int(drawn >> np.uint64(1))
