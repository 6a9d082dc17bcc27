"""What is measured: sizes named once, and maps of a network trained for real."""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from joblib import Parallel
from numpy.typing import NDArray
from torch import Tensor, nn

from gmmcnn import config
from gmmcnn.data import load
from gmmcnn.featuremaps import ActivationStore, extract, filter_blocks
from gmmcnn.hardware.threads import available_cores
from gmmcnn.models import build
from gmmcnn.models.training import train
from gmmcnn.principal_components.pca import pca

K_MIN, K_MAX, DIMS = 2, 10, 2
LARGE_BATCH = 1000
"""N of the comparison with scikit-learn on one large probe batch."""

DEFAULT_BATCH = 200
"""N of a probe batch by default."""

FILTERS = 256
"""Filters in the comparison of sweeps."""

EPOCHS, TRAIN_SAMPLES = 4, 14_000
"""So many samples that LeNet-5 gives ``FILTERS`` live problems of ``LARGE_BATCH`` samples, none of them twice."""


def parser(description: str | None) -> argparse.ArgumentParser:
    """Options that every benchmark has."""
    arguments = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--json", type=Path, help="write the result to this file")
    arguments.add_argument("--rounds", type=int, default=3, help="times each contestant runs")
    return arguments


def cache_folder() -> Path:
    """Where trained maps are kept between benchmarks."""
    return Path(tempfile.gettempdir()) / "gmmcnn-benchmarks"


def trained_store() -> ActivationStore:
    """Maps of the network and the images that :func:`trained_network` returns."""
    model, images, folder = trained_network()
    return extract(model, images, folder / "maps", probe_samples=1000)


def trained_network() -> tuple[nn.Module, Tensor, Path]:
    """A LeNet-5, trained on Fashion-MNIST (on the digits where its files are missing), its training images in whole
    thousands, and the folder that its files are kept in."""
    name = "fashion_mnist"
    try:
        data = load(config.Data(name=name, train_samples=TRAIN_SAMPLES), seed=0)
    except FileNotFoundError:
        name = "digits"
        data = load(config.Data(name=name), seed=0)
    folder = cache_folder() / f"{name}-{TRAIN_SAMPLES}"
    images = data.train.images
    model = build(
        config.Model(name="lenet5"),
        in_channels=images.shape[1],
        image_size=tuple(images.shape[2:]),
        n_classes=len(data.class_names),
        seed=0,
    )
    train(model, data, config.Train(epochs=EPOCHS), folder / "train", seed=0)
    return model, images[: len(images) // 1000 * 1000], folder


def trained_maps(n_samples: int, store: ActivationStore | None = None) -> list[NDArray[np.float32]]:
    """For each layer: maps (F, n_samples, P) of live filters, each probe batch as a filter of its own."""
    store = store or trained_store()
    layers = []
    for layer in store.layers:
        blocks = [maps for _, maps in filter_blocks(store, layer)]
        maps = np.concatenate(blocks)
        problems = maps.reshape(-1, n_samples, maps.shape[2])
        layers.append(problems[problems.std(axis=(1, 2)) > 0])
    return layers


def trained_scores(n_samples: int, n_filters: int) -> NDArray[np.float32]:
    """Scores (n_filters, n_samples, 2) of trained maps, layers in turn, repeated where there are too few."""
    scores = np.concatenate([pca(maps, DIMS).scores for maps in trained_maps(n_samples)])
    order = np.random.default_rng(0).permutation(len(scores))
    return np.ascontiguousarray(scores[np.resize(order, n_filters)])


def standardised(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores (F, N, d) with mean 0 and mean variance 1, filter by filter: one regularisation suits all."""
    centred = scores - scores.mean(axis=1, keepdims=True)
    return centred / np.sqrt(centred.var(axis=1).mean(axis=1))[:, None, None]


def pool() -> Parallel:
    """As many processes as this process may use cores, kept between calls."""
    return Parallel(n_jobs=available_cores())
