"""Filters that carry a memorised label: known ones are found, and what falls is counted."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from gmmcnn import analyze
from gmmcnn.data.splits import Images
from gmmcnn.experiments import carriers


class Memory(nn.Module):
    """Class 0 is what filter 0 sees; filter 1 responds to a dot that one sample alone has, and makes it class 1."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 1, bias=True)
        with torch.no_grad():
            self.conv.weight[:] = torch.tensor([1.0, 20, 0.3, 0.2]).reshape(4, 1, 1, 1)
            self.conv.bias[:] = torch.tensor([0.0, -19, 0, 0.1])

    def forward(self, images):
        maps = torch.relu(self.conv(images))
        return torch.stack([maps[:, 0].mean(dim=(1, 2)) + 0.5, 60 * maps[:, 1].mean(dim=(1, 2))], dim=1)


@pytest.fixture(scope="module")
def trained():
    """40 images; sample 7 has the dot and label 1, as have ten others that filter 1 does not see."""
    rng = torch.Generator().manual_seed(0)
    images = 0.9 * torch.rand(40, 1, 4, 4, generator=rng)
    images[7, 0, 2, 2] = 1.0
    labels = torch.zeros(40, dtype=torch.int64)
    labels[7] = 1
    model = Memory().eval()
    fits = analyze(model, images, labels, engine="cpu", threads=1, k_max=4).fits
    return model, fits, Images(images, labels)


def test_masking_what_carries_the_label_lets_it_fall_and_nothing_else(trained):
    model, fits, train = trained
    others = np.setdiff1d(np.arange(40), [7])
    table = carriers.fallen_labels(model, fits, train, np.array([7]), others, seed=0)
    assert len(table) == len(carriers.ORDERS) * len(carriers.SHARES)
    unit = table[table["order"] == "UnitMem"]  # one filter of four is masked: the one with the dot
    assert (unit["n_filters"] == 1).all()
    assert (unit["fallen"] == 1).all()
    assert (unit["others_changed"] == 0).all()


def test_nothing_memorised_gives_an_empty_table(trained):
    model, fits, train = trained
    table = carriers.fallen_labels(model, fits, train, np.array([], int), np.arange(5), seed=0)
    assert table.empty
    assert list(table.columns)[:2] == ["sample", "order"]


def test_selectivity_is_one_where_nothing_else_activates():
    active = np.array([[2.0, 0, 0], [1, 1, 1], [0, 2, 2]])
    np.testing.assert_allclose(carriers.selectivity(active, 1)[:, 0], [1, 0, -1])


def test_random_filters_are_others_of_the_same_layer_and_about_as_active():
    filters = [("a", n) for n in range(10)] + [("b", n) for n in range(10)]
    active = np.tile(np.arange(10.0), 2)
    drawn = carriers.as_active(np.array([0, 5, 15]), filters, active, np.random.default_rng(0))
    assert len(set(drawn)) == 3
    assert not set(drawn) & {0, 5, 15}
    assert [filters[index][0] for index in drawn] == ["a", "a", "b"]
    assert (np.abs(active[drawn] - active[[0, 5, 15]]) <= 3).all()


def test_a_layer_that_is_used_up_is_drawn_from_the_others():
    filters = [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    drawn = carriers.as_active(np.array([0, 1]), filters, np.arange(4.0), np.random.default_rng(0))
    assert set(drawn) == {2, 3}


def test_filters_without_clusters_come_last(trained):
    _, fits, train = trained
    live = np.concatenate([layer.live[:, 0].any(axis=1) for layer in fits.layers.values()])
    for values in (carriers.surprise(fits, train.labels.numpy()), carriers.cluster_sizes(fits)):
        np.testing.assert_array_equal(np.isfinite(values).all(axis=1), live)


def test_sizes_are_those_of_the_clusters(trained):
    _, fits, _ = trained
    (layer,) = fits.layers.values()
    filter = int(np.flatnonzero(layer.live[:, 0].all(axis=1))[0])
    expected = np.mean([[np.log((row == c).sum()) for c in row] for row in layer.labels[filter, 0]], axis=0)
    np.testing.assert_allclose(carriers.cluster_sizes(fits)[filter], expected)


def test_words_count_by_seed():
    rows = [
        {"seed": seed, "order": "agreeing clusters", "share": 0.1, "fallen": fallen, "others_changed": 0.1}
        for seed, fallen in [(0, 1.0), (0, 0.0), (1, 1.0), (2, 1.0)]
    ]
    (sentence,) = carriers.in_words(pd.DataFrame(rows))
    assert "by agreeing clusters: 83% of the memorised labels fell, 10% of the other predictions changed" in sentence
