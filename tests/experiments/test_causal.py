"""What is left out is what is said to be left out; verdicts on tables whose truth is known."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from gmmcnn.experiments import causal
from gmmcnn.experiments.causal import CHOICES, DRAWS, choices, verdict_on
from gmmcnn.experiments.laboratory import Laboratory, Network
from gmmcnn.experiments.statistics import NO_EFFECT, NOT_SPECIFIC, REFUTED, SUPPORTED, UNDECIDED

NETWORK = Network(0, "overfitting")


@pytest.fixture(scope="module")
def lenient(laboratory):
    """The same networks with thresholds under which there are anomaly filters at this size."""
    settings = laboratory.settings
    screen = replace(settings.screen, small_cluster=15, activation_ratio=0.0)
    return Laboratory(replace(settings, screen=screen), laboratory.folder)


@pytest.fixture(scope="module")
def outcome(lenient):
    return causal.run(lenient)


def noisy_of(laboratory):
    data = laboratory.data(NETWORK)
    return np.isin(np.arange(len(data.train)), data.noisy.numpy())


def test_as_many_samples_are_left_out_in_every_way(outcome):
    for _, rows in outcome.table.groupby("seed"):
        assert set(rows["choice"]) == {"none", *CHOICES, "random"}
        assert rows["choice"].value_counts()["random"] == DRAWS
        left_out = rows[rows["draw"] == 0].set_index("choice")["left_out"]
        assert left_out["none"] == 0
        assert left_out.drop(["none", "wrong"]).nunique() == 1
        assert left_out["outliers"] > 0
        assert left_out["wrong"] == min(40, left_out["outliers"])  # a fifth of 200 labels is wrong


def test_outliers_are_those_that_the_analysis_names_at_their_places_among_the_training_samples(lenient):
    found = {name: samples for name, draw, samples in choices(lenient, NETWORK, noisy_of(lenient)) if draw == 0}
    named = lenient.analysis(NETWORK, lenient.rounds[-1]).outliers["sample"].to_numpy()
    probed, data = lenient.probe(NETWORK), lenient.data(NETWORK)
    assert len(found["outliers"]) == len(named) > 0
    assert (data.train.images[found["outliers"]] == probed.images[np.sort(named)]).flatten(1).all(1).sum() == len(named)


def test_wrong_labels_are_wrong_and_surprising_ones_surprise(lenient):
    noisy = noisy_of(lenient)
    found = {name: samples for name, _, samples in choices(lenient, NETWORK, noisy)}
    assert noisy[found["wrong"]].all()
    assert len(set(found["surprise"])) == len(found["surprise"])
    samples = lenient.analysis(NETWORK, lenient.rounds[-1]).samples
    least_chosen = np.sort(samples["label_surprise"])[-len(found["surprise"])]
    places = np.searchsorted(
        lenient.data(NETWORK).train_indices.numpy(), lenient.probe(NETWORK).samples["dataset_index"].to_numpy()
    )
    assert samples["label_surprise"][np.isin(places, found["surprise"])].min() == least_chosen


def test_nothing_left_out_is_the_network_itself(lenient, outcome):
    row = outcome.table.query("seed == 0 and choice == 'none'").iloc[0]
    measured = lenient.metrics(NETWORK).iloc[-1]
    for column in ("train_loss", "validation_loss", "train_accuracy", "validation_accuracy"):
        assert row[column] == pytest.approx(measured[column], rel=1e-6)


def test_a_network_that_was_trained_without_is_not_trained_again(lenient, outcome, monkeypatch):
    monkeypatch.setattr("gmmcnn.models.training.train", lambda *given, **more: pytest.fail("trained again"))
    row = outcome.table.query("seed == 0 and choice == 'outliers'").iloc[0]
    (samples,) = (s for name, _, s in choices(lenient, NETWORK, noisy_of(lenient)) if name == "outliers")
    assert lenient.without(NETWORK, samples)["train_loss"] == row["train_loss"]


def table_of(without: float, random: float) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    means = {"none": 0.0, "outliers": without, "random": random}
    rows = [(seed, choice, mean + 0.002 * rng.normal()) for seed in range(8) for choice, mean in means.items()]
    table = pd.DataFrame(rows, columns=["seed", "choice", "gain"])
    return table.assign(validation_accuracy=0.7 + table["gain"], accuracy_gap=0.3 - table["gain"])


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
    assert verdict_on(table_of(without, random), "outliers").label == label


def test_networks_without_outliers_end_in_a_verdict_too(laboratory, tmp_path):
    screen = replace(laboratory.settings.screen, ch_ratio=1e9)
    found = causal.run(Laboratory(replace(laboratory.settings, screen=screen), laboratory.folder))
    found.write(tmp_path)
    assert {verdict.label for verdict in found.verdicts} == {UNDECIDED}
    assert "nothing to leave out: seeds 0, 1, 2" in (tmp_path / "verdict.txt").read_text()


def test_everything_is_written(outcome, tmp_path):
    outcome.write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"table.csv", "estimates.csv", "verdict.txt", "without.html"}
