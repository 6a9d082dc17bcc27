"""The three criteria on numbers, their edges included."""

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmmcnn import config
from gmmcnn.filters.rules import Active, Separated, Unbalanced, rules_of

MEASURED = {
    "n_small_clusters": np.array([[0, 1, 2, 3]]),
    "ch_over_average": np.array([[0.5, 0.8, 0.81, np.nan]]),
    "activation_over_average": np.array([[np.nan, 0.5, 0.51, np.inf]]),
}


@pytest.mark.parametrize(
    ("rule", "holds"),
    [
        (Unbalanced(2), [False, False, True, True]),  # as many as asked for are enough
        (Separated(0.8), [False, False, True, False]),  # the ratio itself is not, and an undefined index never
        (Active(0.5), [False, False, True, True]),
    ],
)
def test_a_criterion_holds_from_its_edge_on(rule, holds):
    assert rule(MEASURED).tolist() == [holds]
    assert rule(pd.DataFrame({name: column[0] for name, column in MEASURED.items()})).tolist() == holds


@given(st.integers(1, 9), st.floats(0, 5), st.floats(0, 5))
def test_the_rules_are_the_three_with_the_thresholds_of_the_settings(alpha, beta, theta):
    rules = rules_of(config.Screen(min_small_clusters=alpha, ch_ratio=beta, activation_ratio=theta))
    assert rules == (Unbalanced(alpha), Separated(beta), Active(theta))
    assert [rule.name for rule in rules] == ["unbalanced", "separated", "active"]


@given(st.integers(1, 9), st.floats(0, 5), st.floats(0, 5), st.floats(0, 2))
def test_a_stricter_threshold_admits_nobody_else(alpha, beta, theta, more):
    for rule, stricter in (
        (Unbalanced(alpha), Unbalanced(alpha + 1)),
        (Separated(beta), Separated(beta + more)),
        (Active(theta), Active(theta + more)),
    ):
        assert not (stricter(MEASURED) & ~rule(MEASURED)).any()


def test_rules_are_values():
    with pytest.raises(FrozenInstanceError):
        Separated(0.8).ratio = 2
    assert replace(Active(0.5), ratio=2.0) == Active(2.0)
