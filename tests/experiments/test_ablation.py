"""Every combination of criteria is counted as the screening counts, and judged as H1 is."""

import pandas as pd
import pytest

from gmmcnn.experiments import ablation, overfitting
from gmmcnn.experiments.ablation import COMBINATIONS
from gmmcnn.experiments.laboratory import Network


@pytest.fixture(scope="module")
def outcome(laboratory):
    return ablation.run(laboratory)


def test_there_are_seven_combinations():
    assert len(COMBINATIONS) == 7
    assert COMBINATIONS["unbalanced + active"] == ["unbalanced", "active"]


def test_counts_are_those_of_a_screening_by_these_criteria_alone(laboratory):
    analysis = laboratory.analysis(Network(0, "overfitting"), 3)
    counted = ablation.count_by_combinations(analysis)
    always = {
        "unbalanced": {"small_cluster": analysis.fits.n_samples},
        "separated": {"ch_ratio": 0},
        "active": {"activation_ratio": 0},
    }
    for name, columns in COMBINATIONS.items():
        others = {key: value for rule in set(always) - set(columns) for key, value in always[rule].items()}
        assert counted[name] == analysis.with_thresholds(**others).screening.flagged_per_batch


def test_criteria_together_flag_no_more_than_apart(outcome):
    table = outcome.table
    for name, columns in COMBINATIONS.items():
        assert (table[name] <= table[columns].min(axis=1)).all()


def test_all_together_are_judged_as_in_the_experiment_on_overfitting(outcome, laboratory):
    together = outcome.verdicts[-1]
    first = overfitting.run(laboratory).verdicts[0]
    assert together.label == first.label
    assert together.effects[0].value == first.effects[0].value


def test_everything_is_written(outcome, tmp_path):
    outcome.write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"table.csv", "estimates.csv", "verdict.txt", "criteria.html"}
    assert pd.read_csv(tmp_path / "estimates.csv")["claim"].nunique() == 7
