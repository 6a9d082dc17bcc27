"""The crossed design: what a cell measures, and verdicts on a thousand tables at a time whose truth is known."""

from collections import Counter
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from gmmcnn.experiments import crossed
from gmmcnn.experiments.crossed import (
    CAUSES,
    HELD,
    TOGETHER,
    associated,
    judge_associations,
    judge_crossed,
    regressed,
    unexplained,
)
from gmmcnn.experiments.laboratory import Laboratory, Network
from gmmcnn.experiments.overfitting import COUNTS, count_by_criteria
from gmmcnn.experiments.statistics import NO_EFFECT, NOT_SPECIFIC, REFUTED, SUPPORTED, UNDECIDED

GRID = {
    "size": ["experiment.train_samples=100 experiment.factor=4", "experiment.train_samples=400 experiment.factor=1"],
    "labels": ["data.label_noise=0", "data.label_noise=0.4"],
}


@pytest.fixture(scope="module")
def small(laboratory):
    """Two sizes by two shares of wrong labels, two seeds."""
    settings = laboratory.settings
    experiment = replace(settings.experiment, seeds=2, rounds=3, grid=GRID)
    return Laboratory(
        replace(settings, experiment=experiment, probe=replace(settings.probe, samples=50)), laboratory.folder
    )


@pytest.fixture(scope="module")
def outcome(small):
    return crossed.run(small)


def test_every_seed_trains_a_network_in_every_cell(outcome):
    keys = outcome.table[["cell", "seed", "round"]]
    assert len(keys) == len(keys.drop_duplicates()) == 4 * 2 * 3
    assert outcome.table.notna().all(axis=None)


def test_updates_are_the_steps_that_the_optimiser_has_made(outcome):
    table = outcome.table.set_index(["train_samples", "round"])["updates"]
    assert set(table.loc[100, 3]) == {3 * 4 * 2}  # three rounds of four epochs of two batches of 64
    assert set(table.loc[400, 2]) == {2 * 1 * 7}


def test_a_row_is_of_the_network_that_its_cell_makes(outcome, small):
    row = outcome.table.query("train_samples == 400 and wrong_labels == 0.4 and seed == 1 and round == 2").iloc[0]
    own = Laboratory(crossed.with_cell(small.settings, row["cell"]), small.folder)
    network = Network(1, "overfitting")
    assert len(own.data(network).noisy) == 160
    expected = own.metrics(network).iloc[1]
    for column in ("train_loss", "validation_loss", "gap"):
        assert row[column] == expected[column]
    assert row["accuracy_gap"] == expected["train_accuracy"] - expected["validation_accuracy"]
    assert row[list(COUNTS)].to_dict() == count_by_criteria(own.analysis(network, 2))


def test_what_was_done_is_not_done_again(outcome, small):
    before = (small.folder / "log.csv").read_text()
    again = crossed.run(small)
    assert (small.folder / "log.csv").read_text() == before
    pd.testing.assert_frame_equal(again.table, outcome.table)


def test_every_count_is_judged_and_two_seeds_decide_nothing(outcome):
    assert [verdict.label for verdict in outcome.verdicts] == [UNDECIDED] * len(COUNTS)
    assert outcome.tables["coefficients"].groupby("count", sort=False)["name"].agg(tuple).to_dict() == dict.fromkeys(
        COUNTS, TOGETHER
    )
    assert "of the ranks of the gap" in outcome.remarks[1]


# ------------------------------------------------------------------------------------------------ a thousand at a time

ROUNDS, EXPERIMENTS = 6, 1000
SIZES, LABELS, DECAY = (500, 5_000, 50_000), (0.0, 0.2, 0.4), (0, 1)
CELLS = list(product(SIZES, LABELS, DECAY))


def trainings(rng: np.random.Generator, shape: tuple[int, ...]) -> dict[str, NDArray]:
    """Trainings of LeNet-5 in every cell: arrays (cells × rounds, *shape), about as measured on Fashion-MNIST.

    The training loss starts higher and falls more slowly with wrong labels and with regularisation; the gap widens with
    the passes through the training set, further with wrong labels, and half as far with regularisation.
    """
    columns: dict[str, list[NDArray]] = {name: [] for name in ("gap", "accuracy_gap", *HELD, *CAUSES)}
    share = np.arange(1, ROUNDS + 1)[:, None] / ROUNDS
    flat = int(np.prod(shape))
    for size, wrong, decay in CELLS:
        passes = {500: 120, 5_000: 24, 50_000: 6}[size] * share
        updates = passes * np.ceil(size / 64)
        speed, width = (np.exp(0.2 * rng.normal(size=(1, flat))) for _ in range(2))
        fitted = 1 - np.exp(-speed * passes * (0.02 if wrong else 0.05) * (1 - 0.5 * decay))
        loss = (0.5 + 2.5 * wrong) * (1 - fitted) + (0.2 if decay else 0.02)
        gap = width * (0.4 + 4 * wrong) * fitted * (1 - 0.5 * decay) + 0.1 * wrong - 0.9 * wrong * (1 - fitted)
        columns["train_loss"].append(loss * np.exp(0.03 * rng.normal(size=loss.shape)))
        columns["gap"].append(gap + 0.03 * rng.normal(size=gap.shape))
        columns["accuracy_gap"].append(0.3 * gap + 0.03 * rng.normal(size=gap.shape))
        for name, value in zip(("updates", *CAUSES), (updates, size, passes, wrong), strict=True):
            columns[name].append(np.broadcast_to(value, passes.shape).astype(float))  # the same in all experiments
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    return {name: v.reshape(-1, *(shape if v.shape[1] > 1 else (1, 1))) for name, v in joined.items()}


def _outlier(own: NDArray) -> NDArray:
    own = np.zeros_like(own)
    own[..., 0] = 20
    return own


def _standard(values: NDArray) -> NDArray:
    return (values - values.mean(axis=0)) / values.std(axis=0)


# Each makes a count of what was measured, strengths of the seeds, standard normal numbers of the seeds, and noise.
NULLS = {
    "noise": lambda m, b, z, noise: 2 * noise,
    "drift": lambda m, b, z, noise: noise.reshape(-1, ROUNDS, *noise.shape[1:]).cumsum(1).reshape(noise.shape),
    "updates": lambda m, b, z, noise: 3 * b * _standard(np.log(m["updates"])) + noise,
    "loss": lambda m, b, z, noise: -3 * b * _standard(m["train_loss"]) + noise,
    "loss, logarithm": lambda m, b, z, noise: -3 * b * _standard(np.log(m["train_loss"])) + noise,
    "loss and updates": lambda m, b, z, noise: (
        -2 * b * _standard(m["train_loss"]) + 2 * b * _standard(m["updates"]) + noise
    ),
    "size": lambda m, b, z, noise: -3 * b * _standard(np.log(m["train_samples"])) + noise,
    "passes": lambda m, b, z, noise: 3 * b * _standard(np.log(m["passes"])) + noise,
    "wrong labels": lambda m, b, z, noise: 3 * b * _standard(m["wrong_labels"]) + noise,
    "heterogeneous": lambda m, b, z, noise: 3 * z * _standard(m["gap"]) + noise,
    "one outlier seed": lambda m, b, z, noise: _outlier(z) * _standard(m["gap"]) + noise,
}
GAPS = {
    "gap": lambda m, b, z, noise: b * _standard(m["gap"]) + noise,
    "gap, strong": lambda m, b, z, noise: 4 * b * _standard(m["gap"]) + noise,
    "gap and updates": lambda m, b, z, noise: 2 * b * (_standard(m["gap"]) + _standard(m["updates"])) + noise,
    "gap and loss": lambda m, b, z, noise: 2 * b * (_standard(m["gap"]) - _standard(m["train_loss"])) + noise,
}
WRONG = dict.fromkeys(NULLS, (SUPPORTED, REFUTED)) | dict.fromkeys(GAPS, (REFUTED, NOT_SPECIFIC, NO_EFFECT))
WRONG |= dict.fromkeys(("noise", "one outlier seed"), (SUPPORTED, REFUTED, NOT_SPECIFIC))


def simulated(kind: str, n_seeds: int, n_experiments: int = EXPERIMENTS) -> tuple[NDArray, dict[str, NDArray]]:
    """Count and what was measured beside it, each (cells × rounds, experiments, seeds)."""
    rng = np.random.default_rng([n_seeds, sorted(WRONG).index(kind)])
    shape = (n_experiments, n_seeds)
    measured = trainings(rng, shape)
    strength, own = np.abs(1 + 0.3 * rng.normal(size=shape)), rng.normal(size=shape)
    count = (NULLS | GAPS)[kind](measured, strength, own, rng.normal(size=(len(CELLS) * ROUNDS, *shape)))
    return 20 + 2 * rng.normal(size=shape) + count, measured


def verdicts(count: NDArray, measured: dict[str, NDArray]) -> list:
    """What :func:`judge_crossed` does, for many experiments at once."""
    columns = [count, *(measured[name] for name in ("gap", "accuracy_gap", *HELD, *CAUSES))]
    found = associated(*(values.reshape(len(values), -1) for values in columns))
    by_experiment = [values.reshape(count.shape[1:]) for values in found]
    return [judge_associations("", *(values[i] for values in by_experiment)) for i in range(count.shape[1])]


CURVED = ("updates", "size", "passes")
"""What a fit of curves may leave over, which more seeds would take for an effect."""


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "n_seeds"), [*((kind, 6) for kind in WRONG), *((kind, 16) for kind in CURVED)])
def test_of_a_thousand_experiments_no_more_than_one_in_twenty_ends_in_a_wrong_word(kind, n_seeds):
    words = Counter(found.label for found in verdicts(*simulated(kind, n_seeds)))
    assert sum(words[word] for word in WRONG[kind]) <= 0.05 * EXPERIMENTS, words


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "n_seeds", "word", "share"),
    [("gap, strong", 6, SUPPORTED, 0.9), ("gap and loss", 6, SUPPORTED, 0.9), ("noise", 6, NO_EFFECT, 0.9)],
)
def test_what_is_there_is_found(kind, n_seeds, word, share):
    words = Counter(found.label for found in verdicts(*simulated(kind, n_seeds)))
    assert words[word] >= share * EXPERIMENTS, words


def as_table(kind: str) -> pd.DataFrame:
    count, measured = simulated(kind, 6, 1)
    return pd.concat(
        pd.DataFrame(
            {
                name: np.broadcast_to(values, count.shape)[:, 0, seed]
                for name, values in {"count": count, **measured}.items()
            }
        ).assign(seed=seed)
        for seed in range(6)
    )


def test_one_of_the_thousand_is_judged_as_a_table_is():
    (many,) = verdicts(*simulated("gap", 6, 1))
    one = judge_crossed(as_table("gap"), "count", "")
    assert one.label == many.label
    for estimate, other in zip((*one.effects, *one.checks), (*many.effects, *many.checks), strict=True):
        assert (estimate.value, estimate.p) == pytest.approx((other.value, other.p))


def test_the_regression_gives_each_its_own():
    of_gap, of_updates = (
        [estimate.value for estimate in regressed(as_table(kind), "count")] for kind in ("gap, strong", "updates")
    )
    assert of_gap[0] > 0.8
    assert np.abs(of_gap[1:]).max() < 0.15
    assert of_updates[1] > 0.8
    assert abs(of_updates[0]) < 0.15


def test_in_this_design_the_gap_is_not_told_by_the_rest():
    table = as_table("noise")
    assert unexplained(table) > 0.1
    assert unexplained(table.assign(gap=-table["train_loss"])) == pytest.approx(0, abs=1e-12)
