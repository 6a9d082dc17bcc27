"""What is left out is what is said to be left out; verdicts on tables whose truth is known."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from gmmcnn.experiments import causal
from gmmcnn.experiments.causal import CHOICES, DOSES, DRAWS, choices, verdict_on
from gmmcnn.experiments.laboratory import Laboratory, Network
from gmmcnn.experiments.statistics import NO_EFFECT, NOT_SPECIFIC, REFUTED, SUPPORTED, UNDECIDED

NETWORK = Network(0, "overfitting")


@pytest.fixture(scope="module")
def lenient(laboratory):
    """The same networks with thresholds under which there are anomaly filters at this size."""
    settings = laboratory.settings
    screen = replace(settings.screen, small_cluster=15, activation_ratio=0.0)
    experiment = replace(settings.experiment, seeds=1)
    return Laboratory(replace(settings, screen=screen, experiment=experiment), laboratory.folder)


@pytest.fixture(scope="module")
def outcome(lenient):
    return causal.run(lenient)


def noisy_of(laboratory):
    data = laboratory.data(NETWORK)
    return np.isin(np.arange(len(data.train)), data.noisy.numpy())


def chosen(laboratory, dose):
    return {
        choice: samples
        for name, choice, draw, samples in choices(laboratory, NETWORK, noisy_of(laboratory))
        if (name, draw) == (dose, 0)
    }


def places_of(laboratory):
    probed = laboratory.probe(NETWORK).samples["dataset_index"].to_numpy()
    return np.searchsorted(laboratory.data(NETWORK).train_indices.numpy(), probed)


@pytest.mark.parametrize("dose", DOSES)
def test_as_many_samples_are_left_out_in_every_way(outcome, dose):
    for _, rows in outcome.table[outcome.table["dose"] == dose].groupby("seed"):
        assert rows["choice"].value_counts().to_dict() == {**dict.fromkeys(CHOICES, 1), "random": DRAWS}
        left_out = rows[rows["draw"] == 0].set_index("choice")["left_out"]
        assert left_out.drop("wrong").nunique() == 1
        assert left_out["outliers"] > 0
        assert left_out["wrong"] == min(40, left_out["outliers"])  # a fifth of 200 labels is wrong


def test_outliers_are_those_that_the_analysis_names_at_their_places_among_the_training_samples(lenient):
    found = chosen(lenient, "few")["outliers"]
    named = lenient.analysis(NETWORK, lenient.rounds[-1]).outliers["sample"].to_numpy()
    probed, data = lenient.probe(NETWORK), lenient.data(NETWORK)
    assert len(found) == len(named) > 0
    assert torch.equal(data.train.images[found], probed.images[np.sort(named)])


def test_many_are_as_many_as_there_are_wrong_labels_and_singled_out_most_often(lenient):
    found = chosen(lenient, "many")["outliers"]
    assert len(set(found)) == len(found) == 40
    often = pd.Series(0, index=places_of(lenient))
    for number in lenient.rounds:
        outliers = lenient.analysis(NETWORK, number).outliers  # of one repeat, so that filters count clusterings
        often.iloc[outliers["sample"]] += outliers["n_filters"].to_numpy()
    assert sorted(often[found]) == sorted(often)[-40:]


@pytest.mark.parametrize("dose", DOSES)
def test_wrong_labels_are_wrong_and_surprising_ones_surprise(lenient, dose):
    found = chosen(lenient, dose)
    assert noisy_of(lenient)[found["wrong"]].all()
    surprise = lenient.analysis(NETWORK, lenient.rounds[-1]).samples["label_surprise"].to_numpy()
    left_out = surprise[np.isin(places_of(lenient), found["surprise"])]
    assert sorted(left_out) == sorted(surprise)[-len(found["outliers"]) :]


def test_nothing_left_out_is_the_network_itself(lenient, outcome):
    row = outcome.table.query("seed == 0 and choice == 'none'").iloc[0]
    measured = lenient.metrics(NETWORK).iloc[-1]
    for column in ("train_loss", "validation_loss", "train_accuracy", "validation_accuracy"):
        assert row[column] == pytest.approx(measured[column], rel=1e-6)


def test_a_network_that_was_trained_without_is_not_trained_again(lenient, outcome, monkeypatch):
    monkeypatch.setattr("gmmcnn.models.training.train", lambda *given, **more: pytest.fail("trained again"))
    row = outcome.table.query("seed == 0 and dose == 'few' and choice == 'outliers'").iloc[0]
    assert lenient.without(NETWORK, chosen(lenient, "few")["outliers"])["train_loss"] == row["train_loss"]


def table_of(without: float, random: float) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    means = {"none": 0.0, "outliers": without, "random": random}
    rows = [(seed, choice, mean + 0.002 * rng.normal()) for seed in range(8) for choice, mean in means.items()]
    table = pd.DataFrame(rows, columns=["seed", "choice", "gain"])
    table["dose"] = table["choice"].where(table["choice"] == "none", "few")
    return table.assign(validation_accuracy=0.7 + table["gain"])


@pytest.mark.parametrize(
    ("without", "random", "label"),
    [
        (0.05, 0.0, SUPPORTED),
        (0.05, 0.05, NOT_SPECIFIC),
        (-0.05, 0.0, REFUTED),
        (0.0, -0.05, NO_EFFECT),
    ],
)
def test_the_verdict_asks_for_more_than_random_samples_show(without, random, label):
    assert verdict_on(table_of(without, random), "few", "outliers").label == label


def test_networks_without_outliers_end_in_a_verdict_too(laboratory, tmp_path):
    screen = replace(laboratory.settings.screen, ch_ratio=1e9)
    found = causal.run(Laboratory(replace(laboratory.settings, screen=screen), laboratory.folder))
    found.write(tmp_path)
    assert {verdict.label for verdict in found.verdicts} == {UNDECIDED}
    assert "nothing to leave out: few, seeds 0, 1, 2" in (tmp_path / "verdict.txt").read_text()


def test_everything_is_written(outcome, tmp_path):
    outcome.write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"table.csv", "estimates.csv", "verdict.txt", "without.html"}
