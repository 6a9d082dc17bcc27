"""H1 from trained to verdict, at its smallest."""

import pandas as pd
import pytest

from gmmcnn.experiments import overfitting
from gmmcnn.experiments.laboratory import Network
from gmmcnn.experiments.statistics import UNDECIDED


@pytest.fixture(scope="module")
def outcome(laboratory):
    return overfitting.run(laboratory)


def test_there_is_a_row_for_every_seed_condition_and_round(outcome):
    keys = outcome.table[["seed", "condition", "round"]]
    assert len(keys) == len(keys.drop_duplicates()) == 3 * 2 * 4
    assert outcome.table.notna().all(axis=None)


def test_counts_are_those_of_the_screening(outcome, laboratory):
    row = outcome.table.query("seed == 2 and condition == 'control' and round == 3").iloc[0]
    screening = laboratory.analysis(Network(2, "control"), 3).screening
    assert row["flagged"] == screening.flagged_per_batch
    assert row["unbalanced"] == screening.batches["unbalanced"].sum()  # there is one batch
    held_out = laboratory.analysis(Network(2, "control"), 3, "held_out").screening
    assert row["flagged_held_out"] == held_out.flagged_per_batch


def test_the_gap_is_that_of_the_losses(outcome):
    table = outcome.table
    pd.testing.assert_series_equal(table["gap"], table["validation_loss"] - table["train_loss"], check_names=False)


def test_every_verdict_names_its_checks_and_three_seeds_decide_nothing(outcome):
    assert len(outcome.verdicts) == 4
    for verdict in outcome.verdicts:
        assert verdict.label == UNDECIDED
        assert [check.name for check in verdict.checks] == [
            "given the epoch", "rise beyond the control's", "given the epoch and the training loss",
        ]  # fmt: skip
        assert [check.n for check in verdict.checks] == [3, 3, 3]


def test_a_rise_on_training_images_alone_is_seen():
    epochs = range(1, 7)
    rows = [
        {"seed": s, "condition": "overfitting", "epoch": e, "flagged": e + 0.1 * s, "flagged_held_out": 1 + 0.1 * s * e}
        for s in range(6)
        for e in epochs
    ]
    found = overfitting.beyond_held_out(pd.DataFrame(rows))
    assert found.value == pytest.approx(4 - 1)
    assert found.positive


def test_everything_is_written(outcome, tmp_path):
    outcome.write(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} >= {"table.csv", "estimates.csv", "verdict.txt", "over_training.html"}
    assert len(pd.read_csv(tmp_path / "table.csv")) == 24
    assert (tmp_path / "verdict.txt").read_text().startswith("H1, filters that meet all criteria")
    estimates = pd.read_csv(tmp_path / "estimates.csv")
    assert len(estimates) == 4 * 4
    assert set(estimates["role"]) == {"effect", "check"}
