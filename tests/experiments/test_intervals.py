"""The sign-flip test is that of the textbook; intervals cover as often as they say, effects are found as said."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gmmcnn.experiments.intervals import EXACT_SEEDS, MIN_SEEDS, detectable, limits, p_value

numbers = st.lists(st.integers(-20, 20), min_size=2, max_size=8)


@given(numbers, st.integers(-3, 3))
def test_p_counts_the_sign_patterns(values, null):
    shifted = np.array(values, float) - null
    sums = np.array(list(product((-1, 1), repeat=len(values)))) @ shifted
    tail = min((sums >= shifted.sum() - 1e-9).mean(), (sums <= shifted.sum() + 1e-9).mean())
    assert p_value(np.array(values, float), null) == pytest.approx(min(1, 2 * tail))


@given(st.lists(st.floats(-5, 5), min_size=MIN_SEEDS, max_size=9, unique=True), st.floats(-5, 5))
def test_the_interval_holds_what_the_test_does_not_reject(values, null):
    values = np.array(values)
    low, high = limits(values)
    if min(abs(low - null), abs(high - null)) > 1e-6:
        assert (low < null < high) == (p_value(values, null) > 0.05)


def test_six_seeds_must_agree_and_five_never_suffice():
    assert limits(np.arange(6.0)) == (0, 5)
    assert p_value(np.arange(1.0, 7)) == 2 / 64
    assert np.isnan(limits(np.arange(5.0))).all()
    assert p_value(np.ones(5)) > 0.05


@pytest.mark.parametrize("n", [EXACT_SEEDS + 1, 16])
def test_many_seeds_are_judged_by_student(n):
    values = np.random.default_rng(0).normal(0.5, 1, n)
    expected = stats.ttest_1samp(values, 0.2)
    assert limits(values) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert p_value(values, 0.2) == pytest.approx(expected.pvalue)
    assert p_value(np.ones(n)) == 2.0 ** (1 - n)
    assert p_value(np.zeros(n)) == 1


DRAWS = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "uniform": lambda rng, shape: rng.uniform(-1, 1, shape),
    "heavy tails": lambda rng, shape: rng.standard_t(2, shape),
    "two kinds of seeds": lambda rng, shape: rng.choice([-1.0, 1.0], shape) + 0.2 * rng.normal(size=shape),
    "spread of its own for each seed": lambda rng, shape: rng.normal(size=shape) * np.linspace(0.1, 3, shape[-1]),
}


@pytest.mark.parametrize("n", [6, 8, 12, 16])
@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_intervals_cover_and_tests_err_as_they_say_whatever_the_distribution(draw, n):
    values = draw(np.random.default_rng(n), (2000 if n < 12 else 1000, n))
    parts = [limits(part) for part in np.split(values, 10)]
    low, high = (np.concatenate(ends) for ends in zip(*parts, strict=True))
    covered = ((low <= 0) & (high >= 0)).mean()
    wrong = np.concatenate([p_value(part) for part in np.split(values, 10)]) <= 0.05
    assert covered > 0.93  # 0.95, less three standard errors
    assert wrong.mean() < 0.07
    assert (wrong & (values.mean(axis=1) > 0)).mean() < 0.04  # half of it on each side


@pytest.mark.parametrize("n", [6, 8, 16])
def test_four_of_five_effects_of_the_detectable_size_are_found(n):
    values = np.random.default_rng(1).normal(detectable(n), 1, (2000, n))
    found = np.concatenate([limits(part)[0] > 0 for part in np.split(values, 20)])
    assert found.mean() == pytest.approx(0.8, abs=0.03)


def test_more_seeds_detect_less():
    sizes = [detectable(n) for n in (6, 7, 8, 12, 13, 16)]
    assert sizes == sorted(sizes, reverse=True)
    assert detectable(16) == pytest.approx(0.75, abs=0.01)
    assert np.isnan(detectable(5))
