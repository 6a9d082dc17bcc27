"""A grid is every combination of its options, and a cell changes what it names."""

from dataclasses import replace

import pytest

from gmmcnn.errors import ConfigurationError
from gmmcnn.experiments.grids import grid, with_cell


def test_a_grid_is_every_combination():
    cells = list(grid({"size": ["a.b=1", "a.b=2 a.c=3"], "noise": ["d.e=0", "d.e=1"]}))
    assert cells == ["a.b=1 d.e=0", "a.b=1 d.e=1", "a.b=2 a.c=3 d.e=0", "a.b=2 a.c=3 d.e=1"]


def test_an_empty_grid_is_named():
    with pytest.raises(ConfigurationError, match="grid: is empty"):
        list(grid({}))


def test_a_cell_changes_what_it_names(smoke_settings):
    before = smoke_settings()
    after = with_cell(before, "train.optimizer=sgd train.learning_rate=0.01 experiment.train_samples=70")
    assert (after.train.optimizer, after.train.learning_rate, after.experiment.train_samples) == ("sgd", 0.01, 70)
    assert replace(after, train=before.train, experiment=before.experiment) == before


@pytest.mark.parametrize(
    "wrong",
    ["train.optimiser=sgd", "training.epochs=3", "seed=3", "train.optimizer=adagrad", "gmm.k_max=2.5",
     "train.learning_rate=fast"],
)  # fmt: skip
def test_a_cell_that_names_no_setting_is_refused(smoke_settings, wrong):
    with pytest.raises(ConfigurationError, match=wrong.split("=")[0]):
        with_cell(smoke_settings(), wrong)
