"""Scores that the mixture tests share."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from gmmcnn.data import Splits
from gmmcnn.principal_components.pca import pca


@pytest.fixture(scope="session")
def lenet_scores(lenet_on_digits_maps: dict[str, NDArray]) -> NDArray[np.float64]:
    """Scores (F, 400, 2) of all filters of a trained LeNet-like network, dead ones left out."""
    scores = np.concatenate([pca(maps, 2, engine="reference").scores for maps in lenet_on_digits_maps.values()])
    return scores[scores.std(axis=(1, 2)) > 0].astype(np.float64)


@pytest.fixture(scope="session")
def lenet_on_digits_maps(digits: Splits) -> dict[str, NDArray]:
    """Feature maps (F, 400, P) after the activations of a small network trained on the digits for a few epochs."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip
    images, labels = digits.train.images, digits.train.labels
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(20):
        for rows in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images[rows]), labels[rows]).backward()
            optimizer.step()
    maps, x = {}, images[:400]
    with torch.no_grad():
        for name, module in network.named_children():
            x = module(x)
            if isinstance(module, nn.ReLU):
                maps[name] = x.flatten(2).transpose(0, 1).contiguous().numpy()
    return maps
