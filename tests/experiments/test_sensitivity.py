"""Every variant is judged as H1 is, on the same networks; what moves is said."""

from dataclasses import replace

import pandas as pd
import pytest

from gmmcnn import config
from gmmcnn.errors import ConfigurationError
from gmmcnn.experiments import overfitting, sensitivity
from gmmcnn.experiments.following import judge_over_training
from gmmcnn.experiments.laboratory import Laboratory, Network
from gmmcnn.experiments.sensitivity import (
    FACTORS,
    Variant,
    distinct_taps,
    moves,
    summarise,
    variants,
    variants_over_training,
)
from gmmcnn.experiments.statistics import NOT_SPECIFIC, SUPPORTED, UNDECIDED, judge


def varied(laboratory, *factors: str) -> Laboratory:
    experiment = replace(laboratory.settings.experiment, factors=list(factors))
    return laboratory.beside(replace(laboratory.settings, experiment=experiment))


@pytest.fixture(scope="module")
def few(laboratory):
    """What needs no fits of its own, and the seed of the starts, which does."""
    return varied(laboratory, "small_cluster", "min_frequency", "scope", "random_state")


@pytest.fixture(scope="module")
def outcome(few):
    return sensitivity.run(few)


def test_one_setting_is_varied_at_a_time(laboratory):
    others = [variant for variant in variants(laboratory) if variant.factor != "saturation"]
    assert {variant.factor for variant in others} == set(FACTORS) - {"saturation"}
    for factor in FACTORS[:-1]:
        own = [variant for variant in others if variant.factor == factor]
        assert [variant.settings == laboratory.settings for variant in own] == [variant.in_force for variant in own]
        assert sum(variant.in_force for variant in own) == 1
    for variant in others:
        groups = ("screen", "gmm", "probe", "pca", "extract")
        changed = [g for g in groups if getattr(variant.settings, g) != getattr(laboratory.settings, g)]
        assert len(changed) == (not variant.in_force)
    assert len({variant.name for variant in others}) == len(others)


def test_the_value_in_force_is_always_among_the_variants(laboratory):
    settings = replace(laboratory.settings, screen=config.Screen(ch_ratio=0.7))
    own = [variant for variant in variants(laboratory.beside(settings)) if variant.factor == "ch_ratio"]
    assert [variant.value for variant in own] == [0, 0.5, 0.7, 0.8, 1, 1.25]
    assert [variant.value for variant in own if variant.in_force] == [0.7]


def test_small_clusters_are_varied_with_components_and_samples(laboratory):
    joint = list(variants(varied(laboratory, "saturation")))
    assert {(v.settings.gmm.k_max, v.settings.probe.samples) for v in joint} == {
        (5, 200),
        (10, 200),
        (15, 200),
        (10, 100),
    }
    assert {variant.settings.screen.small_cluster for variant in joint} == {2, 3, 5, 10, 20}
    (in_force,) = [variant for variant in joint if variant.in_force]
    assert (in_force.value, in_force.ratio) == ("5·10/200", 0.25)


def test_more_samples_than_there_are_are_not_asked_for(laboratory):
    assert [variant.value for variant in variants(varied(laboratory, "samples"))] == [100, 200]


def test_an_unknown_factor_is_named(laboratory):
    with pytest.raises(ConfigurationError, match=r"experiment\.factors: k_mox: not varied; did you mean k_max\?"):
        list(variants(varied(laboratory, "k_mox")))


def test_counts_are_those_of_the_screening(few, outcome):
    row = outcome.table.query("seed == 1 and condition == 'control' and round == 2").iloc[0]
    analysis = few.analysis(Network(1, "control"), 2)
    assert row["in force"] == row["small_cluster=5"] == analysis.screening.flagged_per_batch
    assert row["small_cluster=20"] == analysis.with_thresholds(small_cluster=20).screening.flagged_per_batch
    assert row["scope=network"] == analysis.with_thresholds(scope="network").screening.flagged_per_batch
    assert row["min_frequency=0.5"] == analysis.filters["anomalous"].sum()


def test_other_starts_are_other_fits_of_the_same_networks(few, outcome):
    folders = [path for path in few.folder.glob("networks/*-1-*") if (path / "checkpoints").exists()]
    assert len(folders) == 2
    others = outcome.table[["random_state=0", "random_state=1", "random_state=2"]]
    assert (others["random_state=0"] == outcome.table["in force"]).all()
    assert others.nunique(axis=1).max() > 1


def test_the_settings_in_force_are_judged_as_in_the_experiment_on_overfitting(few, outcome):
    tables = [
        few.metrics(network).assign(
            count=[overfitting.count_by_criteria(few.analysis(network, number))["flagged"] for number in few.rounds]
        )
        for network in few.networks()
    ]
    first = judge_over_training(pd.concat(tables), "count", "")
    assert outcome.verdicts[0].label == first.label
    assert [e.value for e in outcome.verdicts[0].effects] == [e.value for e in first.effects]
    summary = outcome.tables["variants"]
    in_force = summary[summary["in_force"] & (summary["factor"] != "min_frequency")]
    assert set(in_force["factor"]) == {"small_cluster", "scope", "random_state"}
    assert (in_force["effect"] == first.effects[0].value).all()
    assert (in_force["verdict"] == first.label).all()


def test_a_count_that_stands_in_several_rows_is_one_variant(laboratory):
    chosen = list(variants(laboratory))
    table = measure_nothing(chosen)
    summary = summarise(table, chosen, {v.name: judge_over_training(table, v.name, "") for v in chosen})
    again = summary["factor"] + " " + summary["value"].astype(str)
    again = set(again[summary["again"]])
    assert {"small_cluster 5", "k_max 10", "saturation 5·10/200", "saturation 10·10/200", "saturation 5·5/200"} <= again
    assert not {"min_frequency 0.5", "small_cluster 10", "k_max 5", "saturation 10·5/200"} & again


def measure_nothing(chosen):
    rows = [{"seed": seed, "condition": "overfitting", "epoch": 1, "gap": 0.0, "train_loss": 1.0} for seed in range(3)]
    return pd.DataFrame(rows).assign(**{variant.name: 0.0 for variant in chosen})


def test_thresholds_are_judged_on_seeds_that_come_after_those_of_the_experiment(few, outcome):
    assert outcome.verdicts[1].claim.endswith("on held-out seeds")
    assert {int(path.name.split("-")[1]) for path in few.folder.glob("networks/*")} >= {3, 4, 5}
    assert set(outcome.table["seed"]) == {0, 1, 2}
    assert outcome.verdicts[1].effects[0].n == 3


def test_counts_with_refits_are_those_of_the_analysis_with_these_settings(laboratory):
    (own,) = [v for v in variants(varied(laboratory, "dims")) if v.value == 1]
    one_seed = laboratory.beside(replace(own.settings, experiment=replace(own.settings.experiment, seeds=1)))
    table = variants_over_training(one_seed, [replace(own, settings=one_seed.settings)])
    fits = one_seed.analysis(Network(0, "overfitting"), 4).fits
    assert next(iter(fits.layers.values())).scores.shape[-1] == 1
    assert len(table) == 2 * 4
    assert (table["dims=1"] == table["in force"]).all()


def test_a_plain_network_has_two_taps_and_a_residual_one_three(laboratory, tmp_path):
    assert distinct_taps(laboratory) == ["auto", "pre_activation"]
    settings = replace(
        laboratory.settings,
        model=config.Model(name="resnet8"),
        extract=config.Extract(tap="branch"),
        experiment=config.Experiment(size="smoke", train_samples=200, rounds=1, factor=1, validation_samples=50),
    )
    assert distinct_taps(Laboratory(settings, tmp_path)) == ["branch", "auto", "pre_activation"]


def test_it_says_between_which_values_the_verdict_changes():
    labels = {2: UNDECIDED, 3: UNDECIDED, 5: NOT_SPECIFIC, 10: SUPPORTED}
    rows = [
        {"factor": "small_cluster", "value": v, "in_force": v == 5, "ratio": v / 20, "verdict": label}
        for v, label in labels.items()
    ]
    rows += [
        {"factor": "scope", "value": v, "in_force": v == "layer", "ratio": 0.25, "verdict": NOT_SPECIFIC}
        for v in ("layer", "network")
    ]
    table = pd.DataFrame(rows).assign(effect_high=[-0.1, float("nan"), 0.9, 0.9, 0.9, 0.9])
    table["again"] = table["in_force"]
    counted, first, by_size, by_scope = moves(table, replace(judge("", [], []), label=NOT_SPECIFIC))
    assert counted.startswith(
        "4 variants around the settings in force (not specific): "
        "1 supported, 0 refuted, 0 no effect larger than X, 1 not specific, 2 undecided."
    )
    assert first == "The verdict changes with small_cluster; it stays with scope."
    assert by_size == (
        "small_cluster: undecided, the count falls, at 2; undecided at 3; "
        "not specific at 5 (in force); supported at 10."
    )
    assert by_scope == "scope: not specific at layer (in force), network."


def test_the_ratio_orders_what_is_varied_together():
    rows = [
        {"factor": "saturation", "value": v, "in_force": False, "ratio": ratio, "verdict": label}
        for v, ratio, label in [("20·10/200", 1.0, SUPPORTED), ("2·10/200", 0.1, UNDECIDED)]
    ]
    assert list(moves(pd.DataFrame(rows).assign(effect_high=0.9, again=False), judge("", [], [])))[2] == (
        "saturation: undecided at 2·10/200 = 0.10; supported at 20·10/200 = 1.00."
    )


def test_a_variant_knows_its_ratio(laboratory):
    settings = replace(laboratory.settings, probe=config.Probe(samples=400), screen=config.Screen(small_cluster=8))
    assert Variant("samples", 400, settings, in_force=False).ratio == 0.2


def test_everything_is_written(outcome, tmp_path):
    outcome.write(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"table.csv", "variants.csv", "thresholds.csv", "estimates.csv", "variants.html", "thresholds.html"}
    said = (tmp_path / "verdict.txt").read_text()
    assert "The verdict changes with" in said
    assert "Thresholds chosen among" in said
