"""What a user gives as samples: an array, a data set, or a loader and just the samples that it draws.

There is one reader for whoever asks for images. It takes bytes, floats of any width and byte order, pictures, views and
tensors that require gradients, and hands out tensors of floats: what a network can be called with.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
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
    default_convert,
)

from gmmcnn.errors import ConfigurationError, DataError, one_line
from gmmcnn.files import digest_tensors
from gmmcnn.hardware.arrays import as_array, as_numbers

Given = Tensor | NDArray | Dataset | DataLoader
"""Samples as a user gives them."""

_BYTES_PER_DIGEST = 64 << 20


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
    DataError
        A sparse or quantised tensor.
    """

    def __init__(self, given: Given, name: str) -> None:
        self._name = name
        self._collate: Any = None
        if isinstance(given, DataLoader):
            own = given.collate_fn not in (default_collate, default_convert)
            self._collate = given.collate_fn if own and given.batch_sampler is not None else None
            given = _drawn_by(given, name)
        data: Any = _plain(given, name) if isinstance(given, Tensor) else given
        if not hasattr(given, "__len__") or not hasattr(given, "__getitem__") or isinstance(given, IterableDataset):
            raise ConfigurationError(
                f"{name}: a {type(given).__name__}; expected a Tensor, ndarray, map-style Dataset or DataLoader"
            )
        try:
            self._length = len(data)
        except (Exception, SystemExit) as error:  # whatever the user's class raises
            raise ConfigurationError(
                f"{name}: a {type(given).__name__} without a length ({one_line(error)})"
            ) from error
        if self._length == 0:
            raise ConfigurationError(f"{name}: there are no samples")
        self._data = data

    def __len__(self) -> int:
        return self._length

    def take(self, indices: range | NDArray[np.int64]) -> tuple[Tensor, Any]:
        """Read some samples.

        Parameters
        ----------
        indices : range or (N,) int64

        Returns
        -------
        images : (N, C, H, W) float Tensor
            Without gradients. Bytes are scaled to 0 … 1; floats keep their values, and their type where torch has it.
        beside : list of N, Tensor, or None
            What the data set gives second; None where that is nothing.

        Raises
        ------
        ConfigurationError
            The samples are no images.
        DataError
            A sample cannot be read, is of another shape than the first, or has infinite pixels.
        """
        if isinstance(self._data, Tensor | np.ndarray):
            rows = slice(indices.start, indices.stop) if isinstance(indices, range) else indices
            return _finite(self._as_batch(self._data[rows]), self._name, indices), None
        samples = [read_sample(self._data, int(index), self._name) for index in indices]
        images, beside = self._joined(samples, indices)
        return _finite(images, self._name, indices), beside

    def fingerprint(self) -> str:
        """SHA-256 of all images of an array; of a data set, of its class, length, first and last image."""
        prefix = ""
        if isinstance(self._data, Tensor | np.ndarray):
            step = max(1, _BYTES_PER_DIGEST // max(1, self._data[:1].nbytes))
            parts = [range(start, min(start + step, len(self))) for start in range(0, len(self), step)]
        else:
            prefix = f"{type(self._data).__qualname__} {len(self)}"
            parts = [range(1), range(len(self) - 1, len(self))]
        return digest_tensors((self.take(part)[0] for part in parts), prefix=prefix)

    def _joined(self, samples: list[Any], indices: range | NDArray[np.int64]) -> tuple[Tensor, Any]:
        """Images (N, C, H, W) of samples as a data set gives them, and what stands second in them."""
        if self._collate is not None:
            try:
                batch = self._collate(samples)
            except (Exception, SystemExit) as error:  # whatever the user's function raises
                raise DataError(f"{self._name}: the loader's collate function fails ({one_line(error)})") from error
            images, beside = _parted(batch)
            return self._as_batch(images), beside
        parted = [_parted(sample) for sample in samples]
        tensors = [
            as_image(image, f"{self._name}: sample {index}") for index, (image, _) in zip(indices, parted, strict=True)
        ]
        seconds = [second for _, second in parted]
        return stacked(tensors, self._name, indices), None if all(second is None for second in seconds) else seconds

    def _as_batch(self, images: Any) -> Tensor:
        if not isinstance(images, Tensor | np.ndarray) or images.ndim != 4:
            found = f"shape {tuple(images.shape)}" if hasattr(images, "shape") else type(images).__name__
            raise ConfigurationError(f"{self._name}: {found} in a batch; expected a tensor (N, C, H, W)")
        return _as_floats(images, self._name)


def read_sample(data: Any, index: int, name: str) -> Any:
    """Get a sample of a user's data set. DataError if its class cannot."""
    try:
        return data[index]
    except (Exception, SystemExit) as error:  # whatever the user's class raises
        raise DataError(f"{name}: sample {index} cannot be read ({one_line(error)})") from error


def as_image(image: object, where: str) -> Tensor:
    """Float tensor (C, H, W) of an image; bytes are scaled to 0 … 1, floats keep their values.

    Parameters
    ----------
    image : (C, H, W) or (H, W) Tensor or ndarray, or PIL image
        Of bytes or floats; a PIL image of mode L or RGB.
    where : str
        What image it is, for messages.

    Raises
    ------
    DataError
        It is none of these.
    """
    if isinstance(image, Image.Image):
        if image.mode not in ("L", "RGB"):
            raise DataError(
                f"{where} is a PIL image of mode {image.mode}; expected L or RGB: add a transform to tensors"
            )
        pixels = np.array(image)
        image = pixels if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    if not isinstance(image, Tensor | np.ndarray):
        raise DataError(f"{where} is a {type(image).__name__}; expected a tensor (C, H, W): add a transform to tensors")
    if image.ndim not in (2, 3) or 0 in image.shape:
        raise DataError(f"{where} has shape {tuple(image.shape)}; expected (C, H, W) or (H, W)")
    tensor = _as_floats(image, where)
    return tensor[None] if tensor.ndim == 2 else tensor


def stacked(images: list[Tensor], name: str, indices: range | NDArray[np.int64]) -> Tensor:
    """Images (N, C, H, W) of samples (C, H, W). DataError, which names the first that differs, if they differ."""
    for index, image in zip(indices, images, strict=True):
        if image.shape != images[0].shape:
            raise DataError(
                f"{name}: sample {index} has shape {tuple(image.shape)}, others {tuple(images[0].shape)}; "
                "expected one shape (C, H, W): add a transform that resizes or crops"
            )
    return torch.stack(images)


def class_numbers(labels: Any, n_samples: int) -> NDArray[np.int64]:
    """Labels (N,) of samples as whole numbers.

    Parameters
    ----------
    labels : (N,) or (N, 1) int, bool, or float of whole numbers
        An array, a tensor, or a sequence of them.
    n_samples : int
        N.

    Raises
    ------
    ConfigurationError
        They are something else.
    """
    try:
        known = as_array(labels, "labels")
    except DataError as error:
        raise ConfigurationError(f"{error}; expected ({n_samples},) whole numbers, one for each image") from error
    column = known.shape == (n_samples, 1)
    if known.shape != (n_samples,) and not column:
        raise _no_labels(f"have shape {known.shape} and type {known.dtype}", n_samples)
    known = known.reshape(-1)
    if known.dtype.kind not in "iubf":
        raise _no_labels(f"have shape {known.shape} and type {known.dtype}", n_samples)
    whole = np.isfinite(known) & (known == np.floor(known)) & (np.abs(known.astype(np.float64)) < 2.0**63)
    if not whole.all():
        sample = int((~whole).argmax())
        raise _no_labels(f"have {known[sample]} for sample {sample}", n_samples)
    return known.astype(np.int64)


def _no_labels(found: str, n_samples: int) -> ConfigurationError:
    return ConfigurationError(f"labels {found}; expected ({n_samples},) whole numbers, one for each image")


def _as_floats(images: Tensor | NDArray, where: str) -> Tensor:
    """Tensor of floats; DataError where there are no floats and no bytes."""
    if isinstance(images, np.ndarray):
        array = as_numbers(images, where)
        if array.dtype.itemsize > 8:  # long double, which torch does not have; its excess becomes infinite
            with np.errstate(over="ignore"):
                array = array.astype(np.float64)
        tensor = torch.from_numpy(array.copy() if _must_be_copied(array) else array)
    else:
        tensor = _plain(images, where)
    if tensor.dtype == torch.uint8:
        return tensor.to(torch.float32) / 255
    if not tensor.is_floating_point():
        raise _neither_float_nor_byte(tensor.dtype, where)
    return tensor


def _plain(tensor: Tensor, where: str) -> Tensor:
    """A tensor without gradients; DataError if it is sparse, quantised, nested, or without values."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested or tensor.is_meta:
        raise DataError(f"{where}: a tensor of layout {tensor.layout} on {tensor.device}; expected a plain one")
    return tensor.detach().resolve_neg()


def _must_be_copied(array: NDArray) -> bool:
    """Whether torch cannot share an array's memory, or must not write to it."""
    return not array.flags.writeable or any(stride < 0 for stride in array.strides)


def _neither_float_nor_byte(dtype: object, where: str) -> DataError:
    return DataError(
        f"{where}: pixels of type {str(dtype).removeprefix('torch.')}; expected floats, scaled as the model was "
        "trained on them, or bytes (uint8), which are scaled to 0 … 1"
    )


def _finite(images: Tensor, name: str, indices: range | NDArray[np.int64]) -> Tensor:
    """Images themselves; DataError if pixels are infinite, which an activation may turn into finite nonsense."""
    infinite = torch.isinf(images).flatten(1).any(dim=1)
    if infinite.any():
        raise DataError(
            f"{name}: sample {indices[int(infinite.nonzero()[0])]} has infinite pixels; expected finite ones"
        )
    return images


def _parted(sample: Any) -> tuple[Any, Any]:
    """Image and what stands beside it, None where that is nothing."""
    if isinstance(sample, tuple | list):
        return (sample[0] if sample else None), (sample[1] if len(sample) > 1 else None)
    return sample, None


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
