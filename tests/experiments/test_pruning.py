"""H3 from trained to verdict, at its smallest; verdicts on tables whose truth is known."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import gmmcnn
from gmmcnn.errors import ModelError
from gmmcnn.experiments import pruning
from gmmcnn.experiments.laboratory import Laboratory, Network
from gmmcnn.experiments.pruning import (
    CONTROLS,
    DOSES,
    FINETUNED,
    FINETUNED_DRAWS,
    RULES,
    distances,
    finetuned_verdict_on,
    l1_norms,
    masks,
    matched_masks,
    most_flagged,
    verdict_on,
)
from gmmcnn.experiments.statistics import NOT_SPECIFIC, REFUTED, SUPPORTED, UNDECIDED
from gmmcnn.models import training
from gmmcnn.models.training import evaluate, train
from gmmcnn.pruning.structural import remove_filters


@pytest.fixture(scope="module")
def lenient(laboratory):
    """The same networks with thresholds under which there are anomaly filters at this size."""
    screen = replace(laboratory.settings.screen, small_cluster=15, activation_ratio=0.0)
    return Laboratory(replace(laboratory.settings, screen=screen), laboratory.folder)


@pytest.fixture(scope="module")
def outcome(lenient):
    return pruning.run(lenient)


def test_every_chosen_mask_has_its_controls(outcome):
    table = outcome.table
    chosen = table[table["mask"] == "chosen"]
    assert len(chosen) >= 3
    for row in chosen.itertuples():
        beside = table[(table["seed"] == row.seed) & (table["rule"] == row.rule)]
        counted = beside["mask"].value_counts()
        assert counted["none"] == 1
        assert counted["random"] == 5
        assert counted.get("single", 0) == (min(row.n_filters, 5) if row.rule == "anomalous" else 0)
        assert set(beside[beside["mask"].isin(CONTROLS)]["n_filters"]) == {row.n_filters}


def test_changes_are_those_of_masking(outcome, lenient):
    network = Network(0, "overfitting")
    model, splits = lenient.model(network, lenient.rounds[-1]), lenient.data(network)
    mask = lenient.analysis(network, lenient.rounds[-1]).screening.anomalous
    _, before = evaluate(model, splits.validation.images, splits.validation.labels)
    with gmmcnn.masked(model, mask):
        _, after = evaluate(model, splits.validation.images, splits.validation.labels)
    row = outcome.table.query("seed == 0 and rule == 'anomalous' and mask == 'chosen'").iloc[0]
    assert row["validation_accuracy"] == after
    assert row["change_validation_accuracy"] == pytest.approx(after - before)


def test_structural_removal_agrees_with_masking(outcome):
    chosen = outcome.table[outcome.table["mask"] == "chosen"]
    assert (chosen["logit_difference"] < 1e-5).all()
    assert (chosen["removed"] + chosen["silenced"] == chosen["n_filters"]).all()


def test_a_removal_that_fails_is_a_remark(lenient, monkeypatch):
    def refuse(*_):
        raise ModelError("conv1: its channels cannot be followed")

    monkeypatch.setattr(pruning, "remove_filters", refuse)
    monkeypatch.setattr(lenient, "_kept", lambda network, work, make: make(lenient, network))
    outcome = pruning.run(lenient)
    chosen = outcome.table[outcome.table["mask"] == "chosen"]
    assert chosen[["removed", "silenced", "logit_difference"]].isna().all(axis=None)
    assert chosen["change_validation_accuracy"].notna().all()
    said = [remark for remark in outcome.remarks if "not removed structurally: conv1: its channels cannot" in remark]
    assert len(said) == len(chosen)


def test_masks_take_as_many_of_every_layer_and_never_dead_ones(lenient):
    network = Network(0, "overfitting")
    model = lenient.model(network, 4)
    screening = lenient.analysis(network, 4).screening
    screening.filters.loc[screening.filters["filter"] == 0, "status"] = "dead"
    chosen = {layer: len(filters) for layer, filters in screening.anomalous.items()}
    for kind, _, mask in masks(model, screening, screening.anomalous, 4, seed=0):
        if kind in CONTROLS:
            assert {layer: len(filters) for layer, filters in mask.items()} == chosen
            assert all(0 not in filters for filters in mask.values())


def test_matched_masks_take_others_of_the_same_layer_that_are_nearest_in_activation():
    live = pd.DataFrame({"layer": ["a"] * 8 + ["b"] * 3, "filter": [*range(8), *range(3)]})
    live["activation_over_average"] = [0.1, 0.2, 0.3, 0.4, 2.0, 2.1, 2.2, 2.3, 1.0, 1.1, 1.2]
    for mask in matched_masks({"a": [4], "b": [1]}, live, 20, seed=0):
        (of_a,), (of_b,) = mask["a"], mask["b"]
        assert of_a in (5, 6, 7)
        assert of_b in (0, 2)
    everything = {"a": list(range(8)), "b": [0, 1, 2]}
    assert list(matched_masks(everything, live, 1, seed=0)) == [{}]


def test_the_activation_of_a_mask_is_the_sum_of_its_filters(outcome, lenient):
    network = Network(0, "overfitting")
    filters = lenient.analysis(network, lenient.rounds[-1]).screening.filters
    chosen = lenient.analysis(network, lenient.rounds[-1]).screening.anomalous
    expected = sum(
        filters.query("layer == @layer and filter in @of_layer")["activation_over_average"].sum()
        for layer, of_layer in chosen.items()
    )
    row = outcome.table.query("seed == 0 and rule == 'anomalous' and mask == 'chosen'").iloc[0]
    assert row["activation"] == pytest.approx(expected)
    assert outcome.table.query("mask == 'none'")["activation"].eq(0).all()


def test_without_anomaly_filters_there_is_nothing_to_mask(laboratory):
    network = Network(0, "overfitting")
    none = laboratory.analysis(network, 4).with_thresholds(ch_ratio=1e9).screening
    assert list(masks(laboratory.model(network, 4), none, none.anomalous, 4, seed=0)) == [("none", 0, {})]


def test_a_dose_is_of_the_filters_that_are_flagged_most_often(lenient, outcome):
    network = Network(0, "overfitting")
    screening = lenient.analysis(network, lenient.rounds[-1]).screening
    frequency = screening.filters.set_index(["layer", "filter"])["flag_frequency"]
    for n in (1, 2, 4):
        mask = most_flagged(screening, n)
        chosen = [(layer, index) for layer, filters in mask.items() for index in filters]
        assert len(chosen) == n
        assert frequency[chosen].min() >= frequency.drop(chosen).max()
        row = outcome.table.query(f"seed == 0 and rule == 'top {n}' and mask == 'chosen'").iloc[0]
        assert row["n_filters"] == n
    assert most_flagged(screening, int((frequency > 0).sum()) + 1) == {}


def test_a_dose_is_judged_as_a_rule_is(outcome):
    claims = [verdict.claim for verdict in outcome.verdicts]
    assert (
        claims[len(RULES)] == "H3, masking the filter flagged most often raises validation and lowers training accuracy"
    )
    assert len(claims) == len(RULES) + len(DOSES)
    assert "doses" in outcome.figures


def test_importances_are_those_of_the_literature():
    convolution = nn.Conv2d(1, 3, 1, bias=False)
    with torch.no_grad():
        convolution.weight[:] = torch.tensor([-3.0, 1.0, 2.0]).reshape(3, 1, 1, 1)
    np.testing.assert_allclose(l1_norms(convolution.weight), [3, 1, 2])
    np.testing.assert_allclose(distances(convolution.weight), [9, 5, 6])


@pytest.fixture(scope="module")
def trained_on(lenient):
    """The same networks, trained on for an epoch."""
    experiment = replace(lenient.settings.experiment, finetune_epochs=1)
    return Laboratory(replace(lenient.settings, experiment=experiment), lenient.folder)


@pytest.fixture(scope="module")
def finetuned(trained_on):
    return pruning.run(trained_on)


def test_finetuning_adds_to_the_table_and_changes_nothing_else_in_it(finetuned, outcome):
    table = finetuned.table
    pd.testing.assert_frame_equal(table[outcome.table.columns], outcome.table)
    tuned = table[table["finetuned_validation_accuracy"].notna()]
    assert set(tuned["mask"]) == set(FINETUNED)
    of_rules = table[table["rule"].isin(RULES)]
    assert set(of_rules[~of_rules.index.isin(tuned.index)]["mask"]) <= {"single", "random", "as_active"}
    assert not tuned["rule"].isin(DOSES).any()
    random = tuned[tuned["mask"] == "random"].groupby(["seed", "rule"]).size()
    assert (random == FINETUNED_DRAWS).all()
    assert (tuned["finetuned_train_loss"] != tuned["train_loss"]).all()
    assert len(finetuned.verdicts) == len(outcome.verdicts) + len(RULES)


def test_changes_after_finetuning_are_from_the_unmasked_network_trained_on_as_long(finetuned):
    of_rules = finetuned.table[finetuned.table["rule"].isin(RULES)]
    for _, rows in of_rules.groupby(["seed", "rule"]):
        unmasked = rows[rows["mask"] == "none"].iloc[0]
        assert unmasked["change_finetuned_validation_accuracy"] == 0
        chosen = rows[rows["mask"] == "chosen"].iloc[0]
        change = chosen["finetuned_train_loss"] - unmasked["finetuned_train_loss"]
        assert chosen["change_finetuned_train_loss"] == change != 0


def test_finetuning_masked_filters_is_finetuning_what_is_left_when_they_are_removed(trained_on, tmp_path):
    network = Network(0, "overfitting")
    model, splits = trained_on.model(network, 4), trained_on.data(network)
    mask = trained_on.analysis(network, 4).screening.anomalous
    smaller = remove_filters(model, mask, splits.train.images[:1])
    assert smaller.removed == mask
    settings = replace(trained_on.settings_of(network).train, epochs=1, checkpoint_epochs=[1])
    removed = train(smaller.model, splits, settings, tmp_path, seed=0).metrics.iloc[-1]
    masked = trained_on.finetuned(network, 4, mask)
    # Sums of other lengths differ in their last bits, and Adam's steps do not shrink with the gradient.
    assert masked["train_loss"] == pytest.approx(removed["train_loss"], rel=1e-3)
    assert masked["validation_loss"] == pytest.approx(removed["validation_loss"], rel=1e-3)
    assert masked["train_loss"] != trained_on.finetuned(network, 4, {})["train_loss"]


def test_a_network_that_was_measured_is_not_measured_again(finetuned, trained_on, monkeypatch):
    monkeypatch.setattr(pruning, "_of_network", lambda *args: pytest.fail("measured again"))
    pd.testing.assert_frame_equal(pruning.effects_of_masks(trained_on), finetuned.table)


def test_a_finished_finetuning_is_not_repeated(finetuned, trained_on, monkeypatch):
    for measured in trained_on.folder.glob("networks/*/pruning-*.parquet"):
        measured.unlink()
    monkeypatch.setattr(training, "train", lambda *args, **kwargs: pytest.fail("trained again"))
    monkeypatch.setattr(Laboratory, "_trained", lambda *args: None)
    again = pruning.effects_of_masks(trained_on)
    pd.testing.assert_frame_equal(again, finetuned.table)


@pytest.mark.parametrize(
    ("chosen", "controls", "label"),
    [
        (0.02, {}, SUPPORTED),
        (0.02, {"fpgm": 0.02}, NOT_SPECIFIC),
        (-0.01, {}, REFUTED),
    ],
    ids=["true", "FPGM helps as much", "the unmasked network does better"],
)
def test_the_verdict_after_finetuning_asks_for_more_than_the_unmasked_network_and_every_control(
    chosen, controls, label
):
    table = table_of(chosen, NO_HELP | controls).rename(
        columns=lambda name: name.replace("change_", "change_finetuned_")
    )
    table.loc[len(table)] = dict(table.iloc[0]) | {"mask": "random", "change_finetuned_validation_accuracy": np.nan}
    verdict = finetuned_verdict_on(table, "anomalous", epochs=5)
    assert verdict.label == label
    assert "after 5 epochs of fine-tuning" in str(verdict)


def table_of(chosen: float, controls: dict[str, float], train: float = -0.02) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = [
        {"seed": seed, "rule": "anomalous", "mask": mask, "change_train_accuracy": train + 0.001 * rng.normal(),
         "change_validation_accuracy": change + 0.001 * rng.normal()}
        for seed in range(8)
        for mask, change in ({"chosen": chosen} | controls).items()
    ]  # fmt: skip
    return pd.DataFrame(rows)


NO_HELP = dict.fromkeys(CONTROLS, -0.01)


@pytest.mark.parametrize(
    ("table", "label"),
    [
        (table_of(0.02, NO_HELP), SUPPORTED),
        (table_of(0.02, NO_HELP | {"random": 0.02}), NOT_SPECIFIC),
        (table_of(0.02, NO_HELP | {"l1": 0.03}), NOT_SPECIFIC),
        (table_of(-0.005, NO_HELP), REFUTED),
        (table_of(0.02, NO_HELP, train=0.01), REFUTED),
    ],
    ids=["true", "random masks help as much", "magnitude helps more", "masking hurts", "training accuracy rises"],
)
def test_the_verdict_asks_for_both_effects_and_for_more_than_every_control_shows(table, label):
    assert verdict_on(table, "anomalous").label == label


def test_a_rule_that_chooses_nothing_decides_nothing():
    table = table_of(0.02, NO_HELP)
    assert verdict_on(table, "strict").label == UNDECIDED


def test_networks_without_anomaly_filters_end_in_a_verdict_too(laboratory, tmp_path):
    screen = replace(laboratory.settings.screen, ch_ratio=1e9)
    found = pruning.run(Laboratory(replace(laboratory.settings, screen=screen), laboratory.folder))
    found.write(tmp_path)
    assert {verdict.label for verdict in found.verdicts} == {UNDECIDED}
    assert "seed 2: no anomaly filter" in (tmp_path / "verdict.txt").read_text()


def test_everything_is_written(outcome, tmp_path):
    outcome.write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"table.csv", "estimates.csv", "verdict.txt", "masks.html"}
    said = (tmp_path / "verdict.txt").read_text()
    assert "random masks" in said
    n_filters = outcome.table.query("rule == 'anomalous' and mask == 'chosen'")["n_filters"].sum()
    assert f"anomalous, all seeds: of {n_filters} masked filters {n_filters} were cut out, 0 share" in said
