"""Samples planted in a training set: how many, of which kinds, with which pixels and labels."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gmmcnn import config, data
from gmmcnn.data.planting import FOREIGN, INVERTED, UNIFORM_NOISE, WRONG_LABEL, plant
from gmmcnn.data.splits import Images
from gmmcnn.errors import ConfigurationError

NONE = torch.empty(0, dtype=torch.int64)


def training_set(n: int = 40) -> Images:
    generator = torch.Generator().manual_seed(0)
    return Images(torch.rand(n, 1, 4, 5, generator=generator), torch.arange(n) % 3)


@given(wrong=st.integers(0, 10), foreign=st.integers(0, 10), seed=st.integers(0, 2**40))
def test_what_is_planted_is_what_was_asked_for_and_all_else_stays(wrong, foreign, seed):
    before = training_set()
    after, planted = plant(before, wrong, foreign, 3, seed, spared=torch.arange(5))
    kinds = list(planted.values())
    assert kinds.count(WRONG_LABEL) == wrong
    assert kinds.count(INVERTED) == (foreign + 1) // 2
    assert kinds.count(UNIFORM_NOISE) == foreign // 2
    assert not planted.keys() & set(range(5))
    other_label = set((after.labels != before.labels).nonzero().flatten().tolist())
    other_image = set((after.images != before.images).flatten(1).any(dim=1).nonzero().flatten().tolist())
    assert other_label == {position for position, kind in planted.items() if kind == WRONG_LABEL}
    assert other_image == {position for position, kind in planted.items() if kind in FOREIGN}
    assert after.images.min() >= before.images.min()
    assert after.images.max() <= before.images.max()
    assert set(after.labels.tolist()) <= {0, 1, 2}
    for position in (position for position, kind in planted.items() if kind == INVERTED):
        inverse = before.images.min() + before.images.max() - before.images[position]
        torch.testing.assert_close(after.images[position], inverse)


def test_the_draw_depends_on_the_seed_alone():
    def planted(seed: int) -> tuple[Images, dict]:
        return plant(training_set(), 4, 4, 3, seed, spared=NONE)

    assert planted(1)[1] == planted(1)[1]
    assert planted(1)[1] != planted(2)[1]
    assert torch.equal(planted(1)[0].images, planted(1)[0].images)


@pytest.mark.parametrize(
    ("wrong", "foreign", "n_classes", "message"),
    [
        (30, 6, 3, r"data\.plant_wrong_labels=30, data\.plant_foreign=6: 35 training samples can be replaced"),
        (1, 0, 1, r"the data set has 1 class; expected at least 2"),
    ],
)
def test_more_than_can_be_planted(wrong, foreign, n_classes, message):
    with pytest.raises(ConfigurationError, match=message):
        plant(training_set(), wrong, foreign, n_classes, 0, spared=torch.arange(5))


def test_a_data_set_knows_what_was_planted_in_it():
    settings = config.Data(train_samples=200, label_noise=0.1)
    plain = data.load(settings, seed=3)
    planted = data.load(replace(settings, plant_wrong_labels=3, plant_foreign=2), seed=3)
    assert sorted(planted.planted.values()) == [INVERTED, UNIFORM_NOISE, *[WRONG_LABEL] * 3]
    assert not plain.planted
    assert torch.equal(planted.train_indices, plain.train_indices)
    assert torch.equal(planted.validation.images, plain.validation.images)
    wrong = {position for position, kind in planted.planted.items() if kind == WRONG_LABEL}
    assert set(planted.noisy.tolist()) == set(plain.noisy.tolist()) | wrong
    as_they_were = planted.train.labels.clone()
    as_they_were[planted.noisy] = planted.original_labels
    before = plain.train.labels.clone()
    before[plain.noisy] = plain.original_labels
    assert torch.equal(as_they_were, before)
    assert "5 planted" in planted.description
    assert np.all(np.diff(planted.noisy.numpy()) > 0)
