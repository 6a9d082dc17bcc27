"""From ``data.name`` to training and validation images."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from gmmcnn import config
from gmmcnn.data import cifar, digits, fashion_mnist, image_folder, map_style
from gmmcnn.data.planting import plant
from gmmcnn.data.splits import Images, Source, Splits, hold_out, replace_labels, subset
from gmmcnn.errors import ConfigurationError, DataError
from gmmcnn.names import is_dotted, unknown

BUILT_IN: dict[str, Callable[[Path | None], Source]] = {
    "digits": digits.source,
    "fashion_mnist": fashion_mnist.source,
    "cifar10": cifar.cifar10,
    "cifar100": cifar.cifar100,
}
"""Built-in data sets: name → what reads its files from a folder."""


def load(settings: config.Data, seed: int) -> Splits:
    """Load a data set and draw from it what the settings ask for.

    The result depends on the files, the settings and the seed alone. Where the data set has a test split of its own,
    that is the validation set; elsewhere ``settings.validation_share`` of the images is held out.

    Parameters
    ----------
    settings : config.Data
    seed : int
        Of the held-out images, the subset, the label noise and what is planted.

    Raises
    ------
    ConfigurationError
        The name is misspelt, or more is asked for than the data set has.
    DataNotFoundError, DataError
        A file is missing, truncated or not what it should be; the message says how to get the right one.
    """
    source = _source(settings, seed)
    if source.validation is None:
        available, held_out = hold_out(len(source.train), settings.validation_share, seed)
        validation_pool = source.train
    else:
        available, held_out = np.arange(len(source.train)), np.arange(len(source.validation))
        validation_pool = source.validation
    indices = subset(available, settings.train_samples, seed)

    train, validation = source.train.take(indices), validation_pool.take(held_out)
    class_names = source.class_names
    if class_names is None:
        class_names, train, validation = _numbered_from_0(train, validation)
    _check(settings.name, train, validation, len(class_names))

    labels, replaced = replace_labels(train.labels, settings.label_noise, len(class_names), seed)
    trained_on, planted = plant(
        Images(train.images, labels),
        settings.plant_wrong_labels,
        settings.plant_foreign,
        len(class_names),
        seed,
        spared=replaced,
    )
    noisy = (trained_on.labels != train.labels).nonzero().flatten()
    return Splits(
        name=settings.name,
        description=_describe(
            settings.name, source, trained_on, validation, len(class_names), len(noisy), len(planted)
        ),
        class_names=class_names,
        train=trained_on,
        validation=validation,
        train_indices=torch.from_numpy(indices),
        noisy=noisy,
        original_labels=train.labels[noisy],
        planted=planted,
    )


def _source(settings: config.Data, seed: int) -> Source:
    if is_dotted(settings.name):
        return map_style.source(settings, seed)
    root = None if settings.root is None else Path(settings.root).expanduser()
    if settings.name == image_folder.NAME:
        return image_folder.source(root, settings.kwargs)
    if settings.name not in BUILT_IN:
        raise unknown("data.name", settings.name, [*BUILT_IN, image_folder.NAME])
    if settings.kwargs:
        raise ConfigurationError(
            f"data.kwargs={dict(settings.kwargs)}: the built-in data set {settings.name} takes none; expected {{}}"
        )
    return BUILT_IN[settings.name](root)


def _numbered_from_0(train: Images, validation: Images) -> tuple[tuple[str, ...], Images, Images]:
    """Names of classes that have none, their numbers; where these start above 0, as from 1 to 10, labels from 0."""
    both = torch.cat([train.labels, validation.labels])
    first, last = max(int(both.min()), 0), int(both.max())
    names = tuple(str(label) for label in range(first, last + 1))
    return names, Images(train.images, train.labels - first), Images(validation.images, validation.labels - first)


def _check(name: str, train: Images, validation: Images, n_classes: int) -> None:
    """Raise DataError unless both sides have images of one shape, and labels of known classes."""
    if train.images.shape[1:] != validation.images.shape[1:]:
        raise DataError(
            f"{name}: training images are {tuple(train.images.shape[1:])} and validation images "
            f"{tuple(validation.images.shape[1:])}; expected one shape (C, H, W)"
        )
    for side, images in (("training", train), ("validation", validation)):
        wrong = ((images.labels < 0) | (images.labels >= n_classes)).nonzero()
        if len(wrong):
            sample = int(wrong[0])
            raise DataError(
                f"{name}: {side} sample {sample} has label {int(images.labels[sample])}; expected 0 to {n_classes - 1}"
            )


def _describe(
    name: str, source: Source, train: Images, validation: Images, n_classes: int, n_noisy: int, n_planted: int
) -> str:
    channels, height, width = train.images.shape[1:]
    noise = f", {n_noisy:,} of them with a wrong label" if n_noisy else ""
    noise += f", {n_planted:,} planted" if n_planted else ""
    return (
        f"{name}: {source.description}, {channels} × {height} × {width} pixels, {n_classes} classes; "
        f"{len(train):,} for training{noise}, {len(validation):,} for validation"
    )
