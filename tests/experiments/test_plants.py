"""What is planted: how many, with which pixels and labels, and that nothing else changes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from gmmcnn import config
from gmmcnn.data import loading
from gmmcnn.data.splits import Images
from gmmcnn.errors import ConfigurationError
from gmmcnn.experiments.plants import CONTROL, KINDS, plant


@pytest.fixture(scope="module")
def data():
    return loading.load(config.Data(name="digits", train_samples=300), 0)


@pytest.fixture(scope="module")
def planted(data):
    return plant(data, 5, seed=1)


def changed(planted, data, what):
    before, after = getattr(data.train, what), getattr(planted.data.train, what)
    return (before != after).flatten(1).any(dim=1).numpy() if what == "images" else (before != after).numpy()


def test_there_are_so_many_of_each_kind(planted):
    kinds, numbers = np.unique(planted.kinds[planted.kinds != ""], return_counts=True)
    assert set(kinds) == set(KINDS)
    assert (numbers == 5).all()


def test_only_planted_samples_change(planted, data):
    for what in ("images", "labels"):
        assert not changed(planted, data, what)[planted.kinds == ""].any()
    assert torch.equal(planted.data.validation.images, data.validation.images)


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_valid(planted, kind):
    images = planted.data.train.images[torch.from_numpy(planted.kinds == kind)]
    assert images.dtype == torch.float32
    assert images.min() >= 0
    assert images.max() <= 1


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "wrong label" in kind and CONTROL not in kind])
def test_wrong_labels_are_wrong(planted, data, kind):
    chosen = planted.kinds == kind
    assert changed(planted, data, "labels")[chosen].all()
    assert planted.data.train.labels.max() < data.n_classes


@pytest.mark.parametrize("kind", ["foreign", "noise", "inverted", "occluded", "corrupted"])
def test_odd_images_differ_and_keep_their_labels(planted, data, kind):
    chosen = planted.kinds == kind
    assert changed(planted, data, "images")[chosen].all()
    assert not changed(planted, data, "labels")[chosen].any()


def test_asymmetric_labels_are_those_of_the_next_class(planted, data):
    chosen = torch.from_numpy(planted.kinds == "wrong label, next class")
    assert torch.equal(planted.data.train.labels[chosen], (data.train.labels[chosen] + 1) % 10)


@pytest.mark.parametrize(("kind", "same_label"), [(CONTROL, True), (f"{CONTROL}, wrong label", False)])
def test_a_near_duplicate_has_its_original_among_the_unplanted(planted, kind, same_label):
    train = planted.data.train
    rest = torch.from_numpy(planted.kinds == "")
    for sample in np.flatnonzero(planted.kinds == kind):
        distances = (train.images[rest] - train.images[sample]).flatten(1).abs().max(dim=1).values
        assert distances.min() < 0.2
        assert (train.labels[rest][distances.argmin()] == train.labels[sample]) == same_label


def test_the_same_seed_plants_the_same(planted, data):
    again, other = plant(data, 5, seed=1), plant(data, 5, seed=2)
    assert (again.kinds == planted.kinds).all()
    assert torch.equal(again.data.train.images, planted.data.train.images)
    assert (other.kinds != planted.kinds).any()


def test_digits_are_foreign_to_other_data_sets(data):
    rng = torch.Generator().manual_seed(0)
    colour = Images(torch.rand(300, 3, 16, 16, generator=rng), data.train.labels)
    planted = plant(replace(data, name="cifar10", train=colour), 2, seed=0)
    foreign = planted.data.train.images[torch.from_numpy(planted.kinds == "foreign")]
    assert torch.equal(foreign[:, 0], foreign[:, 2])  # grey
    assert (foreign == 0).float().mean() > 0.2  # ink on nothing


def test_the_twin_trains_on_the_rest(planted, data):
    twin = planted.without()
    assert len(twin.train) == 300 - 5 * len(KINDS)
    assert torch.equal(twin.train.images, data.train.images[torch.from_numpy(planted.kinds == "")])
    assert len(twin.train_indices) == len(twin.train)


def test_too_few_samples_are_named(data):
    with pytest.raises(ConfigurationError, match=r"experiment.train_samples=300.*at least 480 samples to plant 20"):
        plant(data, 20, seed=0)
