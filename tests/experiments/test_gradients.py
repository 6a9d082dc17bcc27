"""H2 from trained to verdict, at its smallest; verdicts on tables whose truth is known."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from gmmcnn.experiments import gradients
from gmmcnn.experiments.gradients import NETWORKS, Selection, smallest_cluster, verdict_on
from gmmcnn.experiments.laboratory import Laboratory, Network
from gmmcnn.experiments.statistics import NO_EFFECT, NOT_SPECIFIC, REFUTED, SUPPORTED, UNDECIDED


@pytest.fixture(scope="module")
def lenient(laboratory):
    """The same networks with thresholds under which there are anomaly filters at this size."""
    settings = laboratory.settings
    screen = replace(settings.screen, small_cluster=15, activation_ratio=0.0)
    return Laboratory(replace(settings, screen=screen), laboratory.folder)


@pytest.fixture(scope="module")
def outcome(lenient):
    return gradients.run(lenient)


def test_there_is_a_row_for_every_network_and_measure(outcome):
    keys = outcome.table[["seed", "condition", "measure"]]
    assert len(keys) == len(keys.drop_duplicates()) == 3 * 2 * 3


def test_aucs_are_shares_within_their_bootstrap_intervals(outcome):
    known = outcome.table.dropna(subset=["auc", "low"])
    assert len(known) >= 6
    assert known["auc"].between(known["low"], known["high"]).all()
    assert outcome.table["auc_random"].dropna().between(0, 1).all()


def test_outliers_are_those_that_the_analysis_names(lenient, outcome):
    network = Network(0, "overfitting")
    analysis = lenient.analysis(network, lenient.rounds[-1])
    named = set(analysis.outliers["sample"])
    chosen = [sample for s in gradients.flagged_selections(analysis) for sample in s.members]
    assert set(chosen) == named
    row = outcome.table.query("seed == 0 and condition == 'overfitting' and measure == 'norm'").iloc[0]
    assert row["outliers"] == len(named) > 0


def test_random_selections_avoid_flagged_filters_and_stay_in_layer_and_batch(lenient):
    analysis = lenient.analysis(Network(0, "overfitting"), lenient.rounds[-1])
    flagged = list(gradients.flagged_selections(analysis))
    drawn = list(gradients.random_selections(analysis, flagged, np.random.default_rng(0)))
    assert [(s.layer, s.batch) for s in drawn] == [(s.layer, s.batch) for s in flagged]
    assert not {(s.layer, s.filter) for s in drawn} & {(s.layer, s.filter) for s in flagged}


def test_a_network_is_asked_for_the_labels_that_it_was_trained_with(laboratory):
    for condition in NETWORKS:
        network = Network(0, condition)
        splits, samples = laboratory.data(network), laboratory.probe(network).samples
        labels, noisy = gradients.trained_labels(laboratory, network, samples)
        wrong = splits.train_indices[splits.noisy].tolist()
        for index, label, is_noisy in zip(samples["dataset_index"], labels, noisy, strict=True):
            assert splits.train.labels[splits.train_indices == index].item() == label
            assert is_noisy == (index in wrong)
        assert 0 < noisy.sum() < len(noisy)


def test_the_smallest_cluster_is_not_an_empty_one():
    assert smallest_cluster(np.array([2, 2, 0, 0, 0, 2, 2])).tolist() == [2, 3, 4]
    assert smallest_cluster(np.array([1, 1, 0, 0])).tolist() == [2, 3]


def test_own_filter_auc_compares_within_the_batch(lenient):
    analysis = lenient.analysis(Network(0, "overfitting"), 1)
    n_samples = analysis.fits.n_samples
    norms = np.zeros((n_samples, 6))
    norms[[3, 4], 2] = 1.0
    found = gradients.SampleGradients(norm=None, filters={"conv1": norms}, loss=None, error=None)
    assert gradients.own_filter_auc(found, [Selection("conv1", 2, 0, np.array([3, 4]))], analysis) == 1
    assert gradients.own_filter_auc(found, [Selection("conv1", 1, 0, np.array([3, 4]))], analysis) == 0.5
    assert np.isnan(gradients.own_filter_auc(found, [], analysis))


def table_of(auc: dict[str, float], random: float) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        [
            {
                "seed": seed, "condition": condition, "measure": "norm",
                "auc": auc[condition] + 0.01 * rng.normal(), "auc_random": random + 0.01 * rng.normal(),
            }
            for seed in range(8)
            for condition in NETWORKS
        ]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("auc", "random", "label"),
    [
        ({"overfitting": 0.7, "control": 0.65}, 0.5, SUPPORTED),
        ({"overfitting": 0.7, "control": 0.65}, 0.7, NOT_SPECIFIC),
        ({"overfitting": 0.7, "control": 0.4}, 0.5, REFUTED),
        ({"overfitting": 0.7, "control": 0.5}, 0.3, NO_EFFECT),
        ({"overfitting": 0.5, "control": 0.5}, 0.3, NO_EFFECT),
    ],
)
def test_the_verdict_asks_for_both_networks_and_for_more_than_random_filters_show(auc, random, label):
    assert verdict_on(table_of(auc, random), "norm").label == label


def test_a_seed_without_outliers_says_nothing():
    table = table_of({"overfitting": 0.7, "control": 0.65}, 0.5)
    table.loc[table["seed"] > 1, "auc"] = np.nan
    verdict = verdict_on(table, "norm")
    assert verdict.effects[0].n == 2
    assert verdict.label == UNDECIDED


def test_networks_without_outliers_end_in_a_verdict_too(laboratory, tmp_path):
    screen = replace(laboratory.settings.screen, ch_ratio=1e9)
    found = gradients.run(Laboratory(replace(laboratory.settings, screen=screen), laboratory.folder))
    found.write(tmp_path)
    assert {verdict.label for verdict in found.verdicts} == {UNDECIDED}


def test_everything_is_written(outcome, tmp_path):
    outcome.write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"table.csv", "estimates.csv", "verdict.txt", "auc.html"}
    assert "Wrong labels" in (tmp_path / "verdict.txt").read_text()
