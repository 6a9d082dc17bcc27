"""H2 from trained to verdict, at its smallest; verdicts on tables whose truth is known."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from gmmcnn.experiments import gradients
from gmmcnn.experiments.gradients import CONTROLS, Selection, smallest_cluster, verdict_on
from gmmcnn.experiments.laboratory import Condition, Laboratory, Network
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


def test_there_is_a_row_for_every_network_round_and_measure(outcome):
    keys = outcome.table[["seed", "condition", "round", "measure"]]
    assert len(keys) == len(keys.drop_duplicates()) == 3 * 2 * 4 * 3


def test_one_round_of_a_training_is_the_last_and_one_has_the_lowest_validation_loss(lenient, outcome):
    for condition in ("overfitting", "control"):
        metrics = lenient.metrics(Network(1, condition)).set_index("round")["validation_loss"]
        rows = outcome.table.query("seed == 1 and condition == @condition and measure == 'norm'").set_index("round")
        assert rows.index[rows["last"]].tolist() == [4]
        assert rows.index[rows["best"]].tolist() == [metrics.idxmin()]


def test_aucs_are_shares_within_their_bootstrap_intervals(outcome):
    known = outcome.table.dropna(subset=["auc", "low"])
    assert len(known) >= 6
    assert known["auc"].between(known["low"], known["high"]).all()
    for control in CONTROLS:
        assert outcome.table[control].notna().sum() >= 6
        assert outcome.table[control].dropna().between(0, 1).all()


def test_outliers_are_those_that_the_analysis_names(lenient, outcome):
    network = Network(0, "overfitting")
    analysis = lenient.analysis(network, lenient.rounds[-1])
    named = set(analysis.outliers["sample"])
    chosen = [sample for s in gradients.flagged_selections(analysis) for sample in s.members]
    assert set(chosen) == named
    row = outcome.table.query("seed == 0 and condition == 'overfitting' and measure == 'norm' and last").iloc[0]
    assert row["outliers"] == len(named) > 0


def test_random_selections_avoid_flagged_filters_and_stay_in_layer_and_batch(lenient):
    analysis = lenient.analysis(Network(0, "overfitting"), lenient.rounds[-1])
    flagged = list(gradients.flagged_selections(analysis))
    drawn = list(gradients.random_selections(analysis, flagged, np.random.default_rng(0)))
    assert [(s.layer, s.batch) for s in drawn] == [(s.layer, s.batch) for s in flagged]
    assert not {(s.layer, s.filter) for s in drawn} & {(s.layer, s.filter) for s in flagged}
    for own, other in zip(flagged, drawn, strict=True):
        labels = analysis.fits.layers[other.layer].labels[other.filter, other.batch, 0]
        cluster = other.batch * analysis.fits.n_samples + smallest_cluster(labels)
        assert set(other.members) <= set(cluster)
        assert len(set(other.members)) == min(len(own.members), len(cluster))


def test_random_samples_are_as_many_of_the_same_batch(lenient):
    analysis = lenient.analysis(Network(0, "overfitting"), lenient.rounds[-1])
    flagged = list(gradients.flagged_selections(analysis))
    drawn = list(gradients.random_samples(analysis, flagged, np.random.default_rng(0)))
    for own, other in zip(flagged, drawn, strict=True):
        assert (own.layer, own.filter, own.batch) == (other.layer, other.filter, other.batch)
        assert len(own.members) == len(set(other.members))
        assert (other.members // analysis.fits.n_samples == own.batch).all()
    assert any(set(own.members) != set(other.members) for own, other in zip(flagged, drawn, strict=True))


def test_a_network_is_asked_for_the_labels_that_it_was_trained_with(laboratory):
    for condition in Condition:
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


def table_of(overfitted: float, control: float, early: float, random: float) -> pd.DataFrame:
    """AUCs of 8 seeds after the best and the last round; the control's best round is its last."""
    rng = np.random.default_rng(0)
    rows = [
        (seed, condition, last, best, auc + 0.01 * rng.normal(), random + 0.01 * rng.normal(), 0.5)
        for seed in range(8)
        for condition, last, best, auc in (
            ("overfitting", False, True, early),
            ("overfitting", True, False, overfitted),
            ("control", True, True, control),
        )
    ]
    columns = ["seed", "condition", "last", "best", "auc", "auc_random", "auc_samples"]
    return pd.DataFrame(rows, columns=columns).assign(measure="norm")


@pytest.mark.parametrize(
    ("overfitted", "control", "early", "random", "label"),
    [
        (0.7, 0.65, 0.6, 0.5, SUPPORTED),
        (0.7, 0.65, 0.6, 0.7, NOT_SPECIFIC),
        (0.7, 0.4, 0.6, 0.5, REFUTED),
        (0.7, 0.65, 0.4, 0.5, REFUTED),
        (0.7, 0.65, 0.5, 0.3, NO_EFFECT),
        (0.5, 0.5, 0.5, 0.3, NO_EFFECT),
    ],
)
def test_the_verdict_asks_for_all_networks_and_for_more_than_random_filters_show(
    overfitted, control, early, random, label
):
    assert verdict_on(table_of(overfitted, control, early, random), "norm").label == label


def test_a_seed_without_outliers_says_nothing():
    table = table_of(0.7, 0.65, 0.6, 0.5)
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
    assert {path.name for path in tmp_path.iterdir()} >= {
        "table.csv",
        "estimates.csv",
        "verdict.txt",
        "auc.html",
        "over_training.html",
    }
    assert "Wrong labels" in (tmp_path / "verdict.txt").read_text()
