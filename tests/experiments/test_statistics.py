"""Verdicts on tables whose truth is known, and the measures they rest on."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gmmcnn.experiments.statistics import (
    NOT_SPECIFIC,
    NOT_SUPPORTED,
    SUPPORTED,
    auc,
    bootstrap_interval,
    judge,
    judge_over_training,
    over_seeds,
    partial_spearman,
    permutation_p,
    rise,
    spearman,
)

EPOCHS = np.arange(1, 13)


def training(seed: int, condition: str, count, gap) -> pd.DataFrame:
    return pd.DataFrame({"seed": seed, "condition": condition, "epoch": EPOCHS, "count": count, "gap": gap})


def experiment(count_of, n_seeds: int = 5, control: bool = True, wiggle: float = 0.3) -> pd.DataFrame:
    """A table in which ``count_of(epoch, gap, noise)`` makes the count; the control's gap stays near zero."""
    parts = []
    for seed in range(n_seeds):
        rng = np.random.default_rng(seed)
        for condition, slope in [("overfitting", 0.2), ("control", 0.0)][: 2 if control else 1]:
            gap = slope * EPOCHS + wiggle * rng.normal(size=len(EPOCHS))
            parts.append(training(seed, condition, count_of(EPOCHS, gap, rng.normal(size=len(EPOCHS))), gap))
    return pd.concat(parts)


def verdict(table: pd.DataFrame) -> str:
    return judge_over_training(table, "count", "the count follows the gap").label


def test_a_count_that_follows_the_gap_is_supported():
    assert verdict(experiment(lambda epoch, gap, noise: 3 + 4 * gap + 0.3 * noise)) == SUPPORTED


def test_a_count_that_follows_time_alone_is_not_specific():
    table = experiment(lambda epoch, gap, noise: 3 + epoch + 0.3 * noise)
    found = judge_over_training(table, "count", "the count follows the gap")
    assert found.effects[0].value > 0.7  # as strong an association as one could wish
    assert found.label == NOT_SPECIFIC


def test_a_count_that_follows_time_alone_is_not_specific_without_a_control_either():
    table = experiment(lambda epoch, gap, noise: 3 + epoch + 0.3 * noise, control=False)
    assert verdict(table) == NOT_SPECIFIC


def test_a_count_that_rises_as_much_in_the_control_is_not_specific_though_it_follows_the_gap_given_the_epoch():
    table = experiment(lambda epoch, gap, noise: 3 + 4 * gap + 0.3 * noise)
    table.loc[table["condition"] == "control", "count"] += 2 * table.loc[table["condition"] == "control", "epoch"]
    assert verdict(table) == NOT_SPECIFIC


def test_a_count_that_falls_as_the_gap_widens_is_not_supported():
    assert verdict(experiment(lambda epoch, gap, noise: 30 - 4 * gap + 0.3 * noise)) == NOT_SUPPORTED


def test_a_constant_count_is_not_supported():
    assert verdict(experiment(lambda epoch, gap, noise: np.full(len(epoch), 3.0))) == NOT_SUPPORTED


@pytest.mark.parametrize("n_seeds", [1, 2])
def test_too_few_seeds_support_nothing(n_seeds):
    assert verdict(experiment(lambda epoch, gap, noise: 3 + 4 * gap, n_seeds)) == NOT_SUPPORTED


def test_a_gap_that_is_a_function_of_the_epoch_is_told_from_it_by_the_control():
    def count(epoch, gap, noise):
        return 3 + 4 * gap + 0.3 * noise

    beside = judge_over_training(experiment(count, wiggle=0.0), "count", "the count follows the gap")
    assert beside.checks[0].n == 5
    assert beside.label == SUPPORTED
    alone = judge_over_training(experiment(count, wiggle=0.0, control=False), "count", "the count follows the gap")
    assert [check.n for check in alone.checks] == [0, 0]
    assert alone.label == NOT_SPECIFIC
    assert "given the epoch" in str(alone)
    assert "too few seeds to judge" in str(alone)


def test_more_epochs_do_not_make_a_verdict_surer():
    """Each epoch counted twice: the same associations, so the same interval."""
    table = experiment(lambda epoch, gap, noise: 3 + gap + noise)
    once, twice = (judge_over_training(t, "count", "") for t in (table, pd.concat([table, table])))
    assert once.effects[0].low == pytest.approx(twice.effects[0].low)
    assert once.effects[0].n == twice.effects[0].n == 5


@pytest.mark.parametrize("drifting", [False, True])
def test_false_support_is_rare_where_there_is_nothing(drifting):
    """Random walks correlate within a run; over seeds they must not pass for an effect, nor must noise."""
    rng = np.random.default_rng(0)
    labels = []
    for _ in range(150):
        curves = rng.normal(size=(4, 2, 2, len(EPOCHS)))
        curves = curves.cumsum(axis=-1) if drifting else curves
        parts = [
            training(seed, condition, *curves[seed, number])
            for seed in range(4)
            for number, condition in enumerate(("overfitting", "control"))
        ]
        labels.append(verdict(pd.concat(parts)))
    assert 1 - labels.count(NOT_SUPPORTED) / len(labels) < 0.06  # 0.025 expected: 5 % two-sided, one direction claimed
    assert labels.count(SUPPORTED) <= 1


def test_effects_that_are_there_need_a_check_that_holds():
    effect, held = over_seeds("effect", [1.0, 1.1, 0.9]), over_seeds("check", [0.5, 0.6, 0.4])
    failed, unmade = over_seeds("check", [0.5, -0.6, 0.1]), over_seeds("check", [0.5, np.nan, np.nan])
    assert judge("", [effect], [held]).label == SUPPORTED
    assert judge("", [effect], [held, unmade]).label == SUPPORTED
    assert judge("", [effect], [held, failed]).label == NOT_SPECIFIC
    assert judge("", [effect], [unmade]).label == NOT_SPECIFIC
    assert judge("", [effect], []).label == NOT_SPECIFIC
    assert judge("", [effect, failed], [held]).label == NOT_SUPPORTED
    assert judge("", [], [held]).label == NOT_SUPPORTED


def test_the_interval_over_seeds_is_that_of_student():
    values = [0.1, 0.5, 0.3, 0.9]
    found = over_seeds("x", [*values, np.nan], null=0.2)
    expected = stats.ttest_1samp(values, 0.2)
    low, high = expected.confidence_interval(0.95)
    assert (found.low, found.high, found.p) == pytest.approx((low, high, expected.pvalue))
    assert found.n == 4


def test_seeds_that_agree_count_for_no_less_than_seeds_that_nearly_agree():
    nearly, agreed = over_seeds("x", [1.0, 1.0, 0.99]), over_seeds("x", [1.0, 1.0, 1.0])
    assert nearly.positive
    assert agreed.positive
    assert (agreed.low, agreed.high) == (1, 1)
    assert np.isnan(agreed.p)
    assert not over_seeds("x", [1.0, 1.0]).positive
    assert over_seeds("x", [0.0] * 6).p == 1
    assert not over_seeds("x", [0.0] * 6).positive


def test_an_interval_needs_two_seeds():
    assert np.isnan(over_seeds("x", [1.0]).low)
    assert np.isnan(over_seeds("x", []).value)


@given(st.lists(st.tuples(*[st.integers(-5, 5)] * 2), min_size=3, max_size=20))
def test_spearman_equals_scipys(pairs):
    x, y = np.array(pairs).T
    expected = 0.0 if np.ptp(x) == 0 or np.ptp(y) == 0 else stats.spearmanr(x, y).statistic
    assert spearman(x, y) == pytest.approx(expected, abs=1e-12)


def test_the_partial_association_is_that_of_the_textbook():
    rng = np.random.default_rng(0)
    given_ = np.arange(40)
    x, y = 0.05 * given_ + rng.normal(size=40), -0.05 * given_ + rng.normal(size=40)
    xy, xz, yz = spearman(x, y), spearman(x, given_), spearman(y, given_)
    expected = (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))
    assert partial_spearman(x, y, given_) == pytest.approx(expected)


def test_many_variables_at_once_are_each_on_their_own():
    rng = np.random.default_rng(0)
    x, y = np.column_stack([rng.integers(0, 4, (9, 5)), np.ones(9)]), rng.normal(size=9)
    np.testing.assert_allclose(spearman(x, y), [spearman(column, y) for column in x.T])
    np.testing.assert_allclose(
        partial_spearman(x, y, EPOCHS[:9]), [partial_spearman(c, y, EPOCHS[:9]) for c in x.T], atol=1e-12
    )
    assert np.isnan(partial_spearman(x, EPOCHS[:9], EPOCHS[:9])).tolist() == [True] * 6
    table = pd.DataFrame(x, columns=list("abcdef")).assign(epoch=EPOCHS[:9])
    assert rise(table, list("ab")).tolist() == [rise(table, "a"), rise(table, "b")]


def test_nothing_is_known_about_a_gap_apart_from_the_epoch_that_determines_it():
    noise = np.random.default_rng(0).normal(size=12)
    assert np.isnan(partial_spearman(noise, EPOCHS**2, EPOCHS))
    assert partial_spearman(EPOCHS**2, noise, EPOCHS) == 0
    assert np.isnan(partial_spearman([1, 2, 3], [1, 3, 2], [1, 2, 3]))


def test_a_rise_compares_the_last_third_with_the_first():
    table = pd.DataFrame({"epoch": [3, 1, 2, 4, 6, 5], "count": [0, 1, 3, 0, 9, 7]})
    assert rise(table, "count") == 8 - 2


@given(st.lists(st.integers(0, 5), min_size=1, max_size=15), st.lists(st.integers(0, 5), min_size=1, max_size=15))
def test_auc_is_the_share_of_pairs_in_order(values, others):
    pairs = [(v > o) + 0.5 * (v == o) for v in values for o in others]
    assert auc(values, others) == pytest.approx(np.mean(pairs))
    assert auc(values, others) + auc(others, values) == pytest.approx(1)


def test_the_bootstrap_interval_holds_the_auc_and_narrows_with_samples():
    rng = np.random.default_rng(0)
    few, many = (bootstrap_interval(rng.normal(0.5, 1, n), rng.normal(0, 1, 4 * n)) for n in (20, 500))
    truth = stats.norm.cdf(0.5 / np.sqrt(2))
    assert few[0] < truth < few[1]
    assert many[0] < truth < many[1]
    assert many[1] - many[0] < 0.5 * (few[1] - few[0])
    assert np.isnan(auc([], [1.0]))
    assert np.isnan(bootstrap_interval([], [1.0])).all()


def test_permutation_p_counts_the_observed_among_the_controls():
    assert permutation_p(5, [1, 2, 3]) == 0.25
    assert permutation_p(2, [1, 2, 3]) == 0.75
    assert np.isnan(permutation_p(2, []))


def test_an_interval_ends_where_values_do():
    assert over_seeds("rho", [0.2, 0.9, 0.9], possible=(-1, 1)).high == 1


def test_an_estimate_says_what_it_does_not_know():
    assert str(over_seeds("x", [np.nan])) == "x undefined"
    assert "without interval" in str(over_seeds("x", [1.0]))
