"""Associations beside SciPy's and the textbook's, one variable or many at once."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gmmcnn.experiments.associations import (
    auc,
    bootstrap_interval,
    partial_spearman,
    permutation_p,
    rank_regression,
    rise,
    spearman,
)

EPOCHS = np.arange(1, 13)


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
    assert np.isfinite(partial_spearman([1, 2, 4, 3], [1, 3, 2, 4], [1, 2, 3, 4]))  # four are enough


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


def test_given_two_variables_what_is_left_is_that_of_a_least_squares_fit_of_ranks():
    rng = np.random.default_rng(0)
    x, y, one, other = rng.normal(size=(4, 15, 3)).cumsum(axis=1)
    for degree in (1, 2, 3):
        found = partial_spearman(x, y, one, other, degree=degree)
        for column in range(3):
            ranks = [stats.rankdata(values[:, column]) for values in (x, y, one, other)]
            held = [(rank - 8) ** power for rank in ranks[2:] for power in range(1, degree + 1)]
            design = np.column_stack([np.ones(15), *held])
            left = [rank - design @ np.linalg.lstsq(design, rank)[0] for rank in ranks[:2]]
            assert found[column] == pytest.approx(np.corrcoef(*left)[0, 1])
    assert partial_spearman(x[:, 0], y, one, other[:, 1]).shape == (3,)


def test_a_regression_of_ranks_is_a_least_squares_fit():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 40))
    y = np.exp(one + 0.5 * other + 0.2 * rng.normal(size=40))
    standard = [stats.zscore(stats.rankdata(values)) for values in (one, other, y)]
    expected = np.linalg.lstsq(np.column_stack(standard[:2]), standard[2])[0]
    assert rank_regression(y, one, other) == pytest.approx(expected)
    assert expected[0] > expected[1] > 0.3


def test_a_regression_of_what_determines_each_other_or_of_nothing_has_no_numbers():
    x = np.arange(9.0)
    assert np.isnan(rank_regression(x**2, x, -x)).all()
    assert np.isnan(rank_regression([3, 1, 2], [1, 2, 3])).all()
    assert rank_regression(np.ones(9), x).tolist() == [0]


def test_a_curve_is_held_by_its_squares():
    """The count follows the loss by a curve under noise; the gap has another course, and no part in it."""
    rng = np.random.default_rng(0)
    epoch = np.tile(np.arange(1.0, 9), 2)[:, None]
    loss = np.exp(-np.where(np.arange(16) < 8, 0.5, 0.09)[:, None] * epoch) * np.exp(0.03 * rng.normal(size=(16, 400)))
    gap = np.where(np.arange(16)[:, None] < 8, 0.3 * epoch**1.2, 0) + 0.03 * rng.normal(size=(16, 400))
    count = -2 * np.log(loss) + rng.normal(size=(16, 400))
    held = [np.broadcast_to(epoch, loss.shape), loss]
    straight, curved = (partial_spearman(count, gap, *held, degree=degree).mean() for degree in (1, 2))
    assert straight > 0.15
    assert abs(curved) < 0.05


def test_what_is_given_may_be_too_much_for_the_rows():
    rng = np.random.default_rng(0)
    x, y, one, other = rng.normal(size=(4, 6))
    assert np.isfinite(partial_spearman(x, y, one, other))
    assert np.isnan(partial_spearman(x, y, one, other, degree=2))
