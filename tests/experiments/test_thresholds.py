"""Thresholds chosen by data: counts are those of the screening; a choice is confirmed where there is something."""

from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest

from gmmcnn import config
from gmmcnn.experiments import thresholds
from gmmcnn.experiments.laboratory import Network
from gmmcnn.experiments.statistics import NOT_SPECIFIC, SUPPORTED
from gmmcnn.experiments.thresholds import GRID, choose, count_by_thresholds, point, points, scores

EPOCHS = np.arange(1, 9)
NAMES = [f"threshold {number}" for number in range(60)]


@pytest.fixture(scope="module")
def analysis(laboratory):
    return laboratory.analysis(Network(0, "overfitting"), 3)


@pytest.mark.parametrize("scope", ["layer", "network"])
def test_counts_are_those_of_the_screening(analysis, scope):
    grid = {
        "small_cluster": (3, 20),
        "min_small_clusters": (1, 2),
        "ch_ratio": (0.0, 0.9),
        "activation_ratio": (0.0, 0.6),
        "min_frequency": (None, 0.5),
    }
    screen = config.Screen(scope=scope)
    found = count_by_thresholds(analysis.fits, screen, grid)
    assert found.shape == (2,) * 5
    assert len(np.unique(found)) > 4
    for place in product(range(2), repeat=5):
        chosen = {key: values[index] for (key, values), index in zip(grid.items(), place, strict=True)}
        given = {key: value for key, value in chosen.items() if value is not None}
        screening = replace(analysis, settings=screen).with_thresholds(**given).screening
        anomalous = screening.filters["anomalous"].sum()
        expected = screening.flagged_per_batch if chosen["min_frequency"] is None else anomalous
        assert found[place] == expected, chosen


def test_points_are_named_in_the_order_of_their_counts(analysis):
    names, found = list(points()), count_by_thresholds(analysis.fits, analysis.settings).ravel()
    assert len(names) == len(found) == len(set(names))
    assert names[0] == "small_cluster=1 min_small_clusters=1 ch_ratio=0 activation_ratio=0"
    wanted = "small_cluster=20 min_small_clusters=1 ch_ratio=0.5 activation_ratio=0.25 min_frequency=0.5"
    by_hand = analysis.with_thresholds(small_cluster=20, ch_ratio=0.5, activation_ratio=0.25).screening
    assert found[names.index(wanted)] == by_hand.filters["anomalous"].sum() > 0
    in_force = count_by_thresholds(analysis.fits, analysis.settings, point(analysis.settings)).item()
    assert in_force == analysis.screening.flagged_per_batch


def test_the_grid_holds_the_thresholds_in_force():
    screen = config.Screen(small_cluster=config.Screen().small_cluster_for(n_samples=200, k_max=10))
    assert all(getattr(screen, key) in values for key, values in GRID.items())


def training(seeds, count_of) -> pd.DataFrame:
    """Counts by every threshold; ``count_of(name, condition, gap, rng)`` makes one over the epochs of a training."""
    parts = []
    for seed, (condition, slope) in product(seeds, [("overfitting", 0.4), ("control", 0.0)]):
        rng = np.random.default_rng([seed, slope > 0])
        gap = slope * EPOCHS + 0.3 * rng.normal(size=len(EPOCHS))
        made = {name: count_of(name, condition, gap, rng) for name in NAMES}
        place = {"seed": seed, "condition": condition, "epoch": EPOCHS, "gap": gap}
        parts.append(pd.DataFrame(place | {"train_loss": 2 - 0.1 * EPOCHS + 0.05 * rng.normal(size=8)} | made))
    return pd.concat(parts, ignore_index=True)


def walk(name, condition, gap, rng):
    return rng.normal(size=len(EPOCHS)).cumsum()


def test_a_threshold_that_works_is_found_and_confirmed():
    def works(name, condition, gap, rng):
        return (
            5 + 4 * gap + 0.2 * rng.normal(size=len(EPOCHS)) if name == NAMES[41] else walk(name, condition, gap, rng)
        )

    choice = choose(training(range(8), works), training(range(8, 16), works), NAMES)
    assert choice.thresholds == NAMES[41]
    assert choice.verdict.label == SUPPORTED
    assert choice.scores.loc[NAMES[41], "held_out"] > 0.4
    assert str(choice).startswith(f"Thresholds chosen among 60: {NAMES[41]}; score +")


def test_the_best_of_pure_noise_looks_good_where_it_was_chosen_and_is_not_confirmed():
    labels, gains = [], []
    for first in range(0, 160, 8):
        choice = choose(training(range(first, first + 4), walk), training(range(first + 4, first + 8), walk), NAMES)
        best = choice.scores.loc[choice.thresholds]
        labels.append(choice.verdict.label)
        gains.append((best["score"], best["held_out"]))
    tuned, held_out = np.mean(gains, axis=0)
    assert tuned > 0.2 > held_out
    assert labels.count(SUPPORTED) == 0


def test_what_rises_in_the_control_too_is_not_confirmed():
    def drift(name, condition, gap, rng):
        return EPOCHS + 0.3 * rng.normal(size=len(EPOCHS))

    choice = choose(training(range(4), drift), training(range(4, 12), drift), NAMES)
    assert choice.verdict.label == NOT_SPECIFIC
    assert choice.scores["score"].max() < 0.5


def test_the_score_is_that_of_what_is_shown_least():
    table = training(range(3), walk)
    table["gap count"] = table["gap"]
    table["constant"] = 3.0
    found = scores(table, ["gap count", "constant"])
    assert found.loc["gap count", ["association", "given_epoch"]].tolist() == pytest.approx([1, 1])
    assert found.loc["gap count", "score"] == found.loc["gap count", "beyond_control"] < 1
    assert (found.loc["constant"] == 0).all()


def test_a_gap_that_is_a_function_of_the_epoch_leaves_two_things_to_score_by():
    table = training(range(3), walk).assign(gap=lambda rows: rows["epoch"], count=lambda rows: rows["epoch"])
    found = scores(table, ["count"]).loc["count"]
    assert np.isnan(found["given_epoch"])
    assert (found["association"], found["beyond_control"], found["score"]) == (1, 0, 0)


def test_every_point_is_followed_over_training(laboratory):
    grid = GRID | {"small_cluster": (5, 20), "min_frequency": (None,)}
    table = thresholds.thresholds_over_training(laboratory, grid)
    assert len(table) == 6 * laboratory.size.rounds
    assert set(points(grid)) < set(table.columns)
    assert table[list(points(grid))].notna().all(axis=None)
