"""Realistic reports: a small LeNet on ten classes, with planted images, dead filters and hostile names."""

import numpy as np
import pandas as pd

from gmmcnn import config
from gmmcnn.constants import Status
from gmmcnn.filters.fits import Fits, LayerFits
from gmmcnn.filters.outcome import Outcome
from gmmcnn.report.compose import content_of
from gmmcnn.report.content import ReportContent

CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
LAYERS = {"conv1": 6, "conv2": 16}
K_MIN, K_MAX = 2, 6


def random_layer(rng: np.random.Generator, n_filters: int, n_batches: int, n_repeats: int, n_samples: int) -> LayerFits:
    """Filters of every kind: lopsided, even, near-dead, dead, perfectly separated, some in single clusterings only."""
    of_maps, shape = (n_filters, n_batches), (n_filters, n_batches, n_repeats)
    n_tried = K_MAX - K_MIN + 1
    lopsided = rng.random(n_filters) < 0.4
    dead = rng.random(n_filters) < 0.1
    k = rng.integers(K_MIN, K_MAX + 1, shape)
    k[dead] = 0
    status = np.where(np.broadcast_to(dead[:, None, None], shape), Status.DEAD, Status.OK).astype("<U24")
    status[(rng.random(shape) < 0.03) & (k > 0)] = Status.PERFECTLY_SEPARATED
    few = (rng.random(shape) < 0.03) & (k > 0)
    status[few], k[few] = Status.TOO_FEW_DISTINCT, 0
    labels = (rng.random((*shape, n_samples)) * np.maximum(k, 1)[..., None]).astype(np.int16)
    odd = lopsided[:, None, None] & (k > 1)  # a last cluster of one to eight samples in their places
    labels[odd] = np.minimum(labels[odd], k[odd][:, None] - 2)
    labels[odd] = np.where(
        np.arange(n_samples) < rng.integers(1, 9, odd.sum())[:, None], k[odd][:, None] - 1, labels[odd]
    )
    labels[k == 0] = -1
    index = rng.lognormal(4, 0.6, (*shape, n_tried))
    index[status == Status.PERFECTLY_SEPARATED] = np.inf
    index[k == 0] = np.nan
    used = np.arange(K_MAX) < k[..., None]
    return LayerFits(
        scores=rng.normal(size=(*of_maps, n_samples, 2)).astype(np.float32),
        explained_variance=np.ones((*of_maps, 2)),
        mean_activation=np.where(dead[:, None], 0, rng.lognormal(0, 0.7, of_maps)),
        active_share=np.where(rng.random(of_maps) < 0.05, 0.01, 1.0),
        status=status,
        n_components=k,
        labels=labels,
        calinski_harabasz=index,
        lower_bound=np.zeros(index.shape),
        n_iter=np.ones(index.shape, np.int64),
        converged=np.ones(index.shape, bool),
        weights=np.where(used, 1 / np.maximum(k, 1)[..., None], np.nan),
        means=np.where(used[..., None], rng.normal(size=(*shape, K_MAX, 2)), np.nan),
        covariances=np.where(used[..., None, None], np.eye(2) * 0.2, np.nan),
    )


def random_outcome(
    layers: dict[str, int],
    *,
    n_batches: int = 3,
    n_repeats: int = 2,
    n_samples: int = 200,
    seed: int = 0,
    images: bool = True,
    **screen: object,
) -> Outcome:
    """Fits that no data led to, of which the rules find all kinds."""
    rng = np.random.default_rng(seed)
    n = n_batches * n_samples
    fits = Fits(
        {name: random_layer(rng, size, n_batches, n_repeats, n_samples) for name, size in layers.items()}, K_MIN, K_MAX
    )
    known = pd.DataFrame(
        {
            "batch": np.arange(n) // n_samples,
            "label": rng.integers(0, 10, n),
            "planted": np.where(np.arange(n) < 4, "uniform_noise", ""),
            "noisy_label": np.arange(n) % 40 == 4,
        }
    )
    pictures = rng.integers(0, 256, (n if images else 0, 8, 8), dtype=np.uint8)
    skipped = (("shortcut.0", "called twice in one forward pass"), ("head<&>", "never called"))
    return Outcome(fits, known, pictures, config.Screen(**screen), skipped, "LeNet-5 on Fashion-MNIST")


def metrics_table(epochs: list[int], rng: np.random.Generator) -> pd.DataFrame:
    epoch = np.arange(1, epochs[-1] + 1)
    return pd.DataFrame(
        {
            "epoch": epoch,
            "train_loss": 0.02 + np.exp(-epoch / 8),
            "train_accuracy": 1 - 0.45 * np.exp(-epoch / 7),
            "validation_loss": 0.5 + 0.02 * epoch,
            "validation_accuracy": 0.84 - 0.3 * np.exp(-epoch / 4),
            "anomalous_filters": np.where(np.isin(epoch, epochs), 2.0, np.nan),
            "flagged_per_batch": np.where(np.isin(epoch, epochs), 1.5, np.nan),
        }
    )


def masking_table(random: int, rng: np.random.Generator) -> pd.DataFrame:
    names = ["none", "anomalous"] + ["random"] * random
    return pd.DataFrame(
        {
            "mask": names,
            "control": [np.nan, np.nan, *range(random)],
            "n_filters": [0] + [7] * (random + 1),
            "train_accuracy": [0.991, 0.873, *rng.normal(0.86, 0.04, random)],
            "train_loss": [0.03, 0.41, *rng.normal(0.45, 0.1, random)],
            "validation_accuracy": [0.842, 0.821, *rng.normal(0.815, 0.012, random)],
            "validation_loss": [1.1, 0.9, *rng.normal(0.95, 0.1, random)],
        }
    )


def realistic_content(layers: dict[str, int] | None = None, **about: object) -> ReportContent:
    rng = np.random.default_rng(0)
    layers = layers or LAYERS
    return content_of(
        random_outcome(layers, **about),
        earlier={epoch: random_outcome(layers, seed=epoch, **about) for epoch in (1, 4)},
        epoch=9,
        facts={"Seed": "0", "Versions": "gmmcnn 0.1.0, torch 2.13.0"},
        metrics=metrics_table([1, 4, 9], rng),
        masking=masking_table(20, rng),
        class_names=CLASSES,
        notes=["Half of the labels are wrong."],
        command="gmmcnn task=screen run=runs/one",
    )
