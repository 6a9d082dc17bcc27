"""The search asks what its grid says, confirms on other seeds, and finds what is planted in a table."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from gmmcnn.experiments import conditions
from gmmcnn.experiments.conditions import CLAIMS, QUESTION, evenness, explore, measures
from gmmcnn.experiments.following import judge_over_training
from gmmcnn.experiments.laboratory import Laboratory, Network
from gmmcnn.experiments.statistics import SUPPORTED, judge


def test_measures_are_what_they_are_called(laboratory):
    analysis = laboratory.analysis(Network(0, "overfitting"), 4)
    found = measures(analysis)
    assert found["flagged"] == analysis.screening.flagged_per_batch
    assert found["flagged, λ = 2"] <= found["flagged"] <= found["flagged, λ = 10"]
    assert found["live"] == (analysis.screening.batches["status"] == "ok").sum() / analysis.fits.n_batches
    assert 0 < found["evenness"] <= 1
    assert evenness(analysis).between(0, 1).all()
    assert found["outliers"] == len(analysis.outliers) / len(analysis.samples)


@pytest.fixture(scope="module")
def searched(laboratory, tmp_path_factory):
    """A grid of one cell, in which more live filters always look as if they followed the gap."""
    experiment = replace(laboratory.settings.experiment, grid={"labels": ["data.label_noise=0.2"]})
    own = Laboratory(replace(laboratory.settings, experiment=experiment), laboratory.folder)
    judged = []

    def counts(laboratory):
        judged.append(laboratory.settings.seed)
        seeds, epochs, rng = range(8), np.arange(1, 9), np.random.default_rng(laboratory.settings.seed)
        table = pd.concat(
            pd.DataFrame(
                {
                    "seed": seed, "condition": condition, "epoch": epochs, "gap": gap, "train_loss": rng.normal(size=8),
                    "follows": gap + rng.normal(0, 0.3, 8), "ripples": [1, 0] * 4,
                }
            )
            for seed in seeds
            for condition, gap in (("overfitting", epochs**1.5 * (epochs % 2 + 2)), ("control", epochs * 0.1))
        )  # fmt: skip
        for column in ("follows", "ripples"):
            yield column, judge_over_training(table, column, column)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CLAIMS, "H1", counts)
        outcome = conditions.run(own)
        again = conditions.run(own)
    return outcome, again, judged


def test_what_looks_supported_is_asked_again_with_other_seeds_and_nothing_twice(searched):
    outcome, again, judged = searched
    assert judged == [0, 3]
    pd.testing.assert_frame_equal(outcome.table, again.table)


def test_held_out_seeds_come_after_those_of_the_cell(laboratory, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setitem(CLAIMS, "H1", lambda own: iter(asked.append(own.seeds) or [("none", judge("", [], []))]))
    one = Laboratory(laboratory.settings, tmp_path)
    for held_out in (False, True):
        explore(one, {"experiment.seeds=5": ["H1"]}, held_out=held_out)
    assert asked == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]


def test_what_is_planted_is_found_and_confirmed_and_ripples_are_not(searched):
    questions = searched[0].table.drop_duplicates([*QUESTION, "stage"])
    counted = questions[questions["hypothesis"] == "H1"].set_index(["measure", "stage"])["verdict"]
    assert counted["follows", "explored"] == counted["follows", "held out"] == SUPPORTED
    assert counted["ripples", "explored"] != SUPPORTED
    assert ("ripples", "held out") not in counted
    assert any("1 of these 1 held" in remark for remark in searched[0].remarks)


def test_the_other_claims_are_judged_by_their_own_experiments(searched):
    measures = searched[0].table.groupby("hypothesis")["measure"].unique()
    assert set(measures["H2"]) == set(conditions.gradients.MEASURES)
    assert set(measures["H3"]) == set(conditions.pruning.RULES)


def test_everything_that_is_counted_is_judged_both_ways(laboratory):
    experiment = replace(laboratory.settings.experiment, seeds=1)
    one = laboratory.beside(replace(laboratory.settings, experiment=experiment))
    judged = [measure for measure, _ in conditions._judge_counts(one)]
    counted = measures(one.analysis(Network(0, "overfitting"), 4))
    assert len(judged) == 2 * 3 * len(counted)
    assert {"more flagged", "less flagged", "more live, before the activation"} <= set(judged)
