"""Small networks that are really trained, and the scores of their filters' maps, kept between runs."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks import cases
from gmmcnn import config
from gmmcnn.data import load
from gmmcnn.featuremaps import ActivationStore, extract, filter_blocks
from gmmcnn.models import build
from gmmcnn.models.training import train
from gmmcnn.principal_components.pca import pca


@dataclass(frozen=True)
class Network:
    """What is trained; the maps are those of its training images, at most ``images`` of them."""

    model: str
    data: str
    seed: int
    epochs: int
    images: int = 4000
    label_noise: float = 0.0

    @property
    def name(self) -> str:
        noise = f", {self.label_noise:.0%} wrong labels" if self.label_noise else ""
        return f"{self.model} on {self.data}{noise}"

    def store(self) -> ActivationStore:
        """Maps (samples in thousands) after each activation."""
        model, images, folder = self.trained()
        return extract(model, images, folder / "maps", probe_samples=1000)

    def trained(self) -> tuple[nn.Module, Tensor, Path]:
        """The network, its training images in whole thousands, and the folder that its files are kept in."""
        fashion = self.data == "fashion_mnist"
        samples = config.Data(
            name=self.data, train_samples=self.images if fashion else None, label_noise=self.label_noise
        )
        data = load(samples, self.seed)
        model = build(
            config.Model(name=self.model),
            in_channels=data.in_channels, image_size=data.image_size, n_classes=data.n_classes, seed=self.seed,
        )  # fmt: skip
        named = f"{self.model}-{self.data}-{self.images}-{self.epochs}-{self.seed}-{self.label_noise}"
        folder = cases.cache_folder() / named
        train(model, data, config.Train(epochs=self.epochs), folder / "train", seed=self.seed)
        images = data.train.images
        return model, images[: len(images) // 1000 * 1000], folder


def live_scores(network: Network, n_samples: int, n_problems: int) -> NDArray[np.float32]:
    """Scores (n_problems, n_samples, 2) of live filters on batches of the network's images, drawn from all layers."""
    store = network.store()
    layers = [np.concatenate([maps for _, maps in filter_blocks(store, layer)]) for layer in store.layers]
    batches = [maps.reshape(-1, n_samples, maps.shape[2]) for maps in layers]
    places = [(layer, f) for layer, maps in enumerate(batches) for f in np.flatnonzero(maps.std(axis=(1, 2)) > 0)]
    drawn = np.random.default_rng(0).permutation(len(places))[:n_problems]
    chosen = [batches[layer][f] for layer, f in (places[i] for i in drawn)]
    return np.concatenate([pca(maps[None], cases.DIMS, engine="cpu").scores for maps in chosen])
