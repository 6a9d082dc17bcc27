"""Five words on estimates whose truth is known, and what an estimate says of itself."""

import numpy as np
import pytest
from scipy import stats

from gmmcnn.experiments.intervals import detectable, limits
from gmmcnn.experiments.statistics import (
    NO_EFFECT,
    NOT_SPECIFIC,
    REFUTED,
    SUPPORTED,
    UNDECIDED,
    WORDS,
    Estimate,
    discovered,
    estimates_table,
    judge,
    over_seeds,
    several_judged,
)

SPREAD = np.linspace(-0.05, 0.05, 8)


def estimate(mean: float, n: int = 8, spread: float = 1.0, smallest: float = 0.3) -> Estimate:
    return over_seeds(f"{mean:+}", mean + spread * SPREAD[:n], smallest=smallest)


THERE, REVERSED, SMALL = estimate(1), estimate(-1), estimate(0.1)
WIDE, FEW = estimate(0.2, spread=50), estimate(1, n=5)


def test_these_are_what_they_are_called():
    assert [e.positive for e in (THERE, REVERSED, SMALL, WIDE, FEW)] == [True, False, True, False, False]
    assert [e.reversed() for e in (THERE, REVERSED, SMALL, WIDE, FEW)] == [False, True, False, False, False]
    assert [e.small for e in (THERE, REVERSED, SMALL, WIDE, FEW)] == [False, True, True, False, False]


@pytest.mark.parametrize(
    ("effects", "controls", "expected"),
    [
        ([THERE], [THERE], SUPPORTED),
        ([THERE, THERE], [THERE, THERE], SUPPORTED),
        ([THERE], [], UNDECIDED),
        ([THERE], [THERE, FEW], UNDECIDED),
        ([THERE], [WIDE], UNDECIDED),
        ([FEW], [FEW], UNDECIDED),
        ([THERE], [THERE, estimate(0)], NOT_SPECIFIC),
        ([THERE], [REVERSED], NOT_SPECIFIC),
        ([THERE], [WIDE, REVERSED], NOT_SPECIFIC),
        ([REVERSED], [], REFUTED),
        ([THERE, REVERSED], [THERE], REFUTED),
        ([estimate(0)], [THERE], NO_EFFECT),
        ([THERE, estimate(0)], [WIDE], NO_EFFECT),
        ([SMALL], [WIDE], NO_EFFECT),  # there, but smaller than what is of interest
        ([SMALL], [THERE], SUPPORTED),
        ([WIDE], [THERE], UNDECIDED),
        ([WIDE], [SMALL], UNDECIDED),
        ([], [THERE], UNDECIDED),
    ],
)
def test_the_word_for_a_claim(effects, controls, expected):
    assert judge("", effects, controls).label == expected


@pytest.mark.parametrize(
    ("effects", "controls", "besides", "expected"),
    [
        ([THERE], [THERE], [THERE], SUPPORTED),
        ([THERE], [THERE], [SMALL], SUPPORTED),
        ([THERE], [THERE], [WIDE], UNDECIDED),
        ([THERE], [THERE], [estimate(0)], UNDECIDED),  # it may be small for want of information
        ([THERE], [estimate(0)], [WIDE], NOT_SPECIFIC),
        ([REVERSED], [THERE], [THERE], UNDECIDED),  # time, say, lets the count fall
        ([REVERSED], [REVERSED], [WIDE], NO_EFFECT),
        ([REVERSED], [REVERSED], [REVERSED], REFUTED),
        ([estimate(0)], [WIDE], [WIDE], UNDECIDED),
        ([estimate(0)], [estimate(0)], [WIDE], NO_EFFECT),
    ],
)
def test_the_word_for_a_claim_whose_effect_time_may_move(effects, controls, besides, expected):
    assert judge("", effects, controls, besides=besides, confounded=True).label == expected


def test_several_effects_are_refuted_by_a_surer_reversal():
    six = over_seeds("six", -1 + SPREAD[:6])
    assert six.p == 2 / 64
    assert judge("", [six], []).label == REFUTED
    assert judge("", [six, THERE], []).label == UNDECIDED


def test_a_verdict_says_what_it_rests_on():
    found = judge("Counts rise", [estimate(0.1)], [FEW, REVERSED, estimate(0), WIDE])
    assert found.words == found.label == NOT_SPECIFIC
    text = str(found)
    assert text.startswith("Counts rise: not specific. +0.1 +0.1 [+0.069, +0.131] over 8 seeds, p = 0.0078, detectable")
    for part in ("(too few seeds to judge)", "(reversed)", "(smaller than 0.3)", "(not shown)"):
        assert part in text
    none = judge("Counts rise", [estimate(0)], [THERE])
    assert str(none).startswith("Counts rise: no effect larger than 0.3 (+0). ")
    table = estimates_table(found)
    assert table["role"].tolist() == ["effect", *["check"] * 4]
    assert table["seeds"].tolist() == [8, 5, 8, 8, 8]
    assert table["detectable"].isna().tolist() == [False, True, False, False, False]
    assert len(set(WORDS)) == 5


def test_the_interval_is_that_of_the_seeds_that_answer():
    values = np.array([0.1, 0.5, 0.3, 0.9, 0.4, 0.35, 0.2])
    found = over_seeds("x", [*values, np.nan], null=0.2)
    assert (found.low, found.high) == limits(values)
    assert (found.n, found.value) == (7, pytest.approx(values.mean()))
    assert found.detectable > 0


def test_seeds_that_agree_count_for_no_less_than_seeds_that_nearly_agree_and_have_no_interval_without_width():
    nearly, agreed = over_seeds("x", [1.0] * 5 + [0.99]), over_seeds("x", [1.0] * 6)
    assert nearly.positive
    assert agreed.positive
    assert agreed.p == 2 / 64
    assert np.isnan([agreed.low, agreed.high, agreed.detectable]).all()
    assert not agreed.small
    assert not over_seeds("x", [1.0] * 5).positive
    assert over_seeds("x", [0.0] * 6).p == 1
    assert not over_seeds("x", [0.0] * 6).positive


def test_an_interval_of_seeds_that_agree_leaves_room_for_others():
    bounded = over_seeds("rho", [1.0] * 6, possible=(-1, 1))
    others = 1 - 0.025 ** (1 / 6)  # that share of seeds may say -1 and six still agree once in 40
    assert (bounded.low, bounded.high) == (pytest.approx(1 - 2 * others), 1)
    assert bounded.low > 0
    assert over_seeds("rho", [0.0] * 16, smallest=0.3, possible=(-1, 1)).small
    assert not over_seeds("rho", [0.0] * 6, smallest=0.3, possible=(-1, 1)).small
    assert np.isnan(over_seeds("rho", [1.0] * 5, possible=(-1, 1)).low)


def test_an_interval_ends_where_values_do():
    values = np.r_[-0.9, np.ones(12)]
    assert over_seeds("rho", values, possible=(-1, 1)).high == 1 < limits(values)[1]


def test_an_estimate_says_what_it_does_not_know():
    assert str(over_seeds("x", [np.nan])) == "x undefined"
    assert str(over_seeds("x", [1.0])) == "x +1 without interval over 1 seed, nothing detectable with fewer than 6"
    assert np.isnan(over_seeds("x", []).value)
    assert np.isnan(over_seeds("x", [1.0]).p)
    assert over_seeds("x", [1.0, 2.0]).p == 0.5  # of four patterns of signs two are as far out


def test_seeds_that_differ_by_rounding_agree_and_others_do_not():
    rounding = 1e-7 * np.array([0, 1, -1, 1, -1, 0])
    assert np.isnan(over_seeds("x", 1e6 + rounding).detectable)
    assert not np.isnan(over_seeds("x", 1.0 + rounding).detectable)
    assert np.isnan(over_seeds("x", 1e-6 * rounding).detectable)


def test_what_is_detectable_goes_with_the_spread_of_the_seeds():
    values = np.array([0.3, 0.1, 0.4, 0.1, 0.5, 0.9])
    assert over_seeds("x", values).detectable == pytest.approx(values.std(ddof=1) * detectable(6))
    assert over_seeds("x", 10 * values + 3).detectable == pytest.approx(10 * values.std(ddof=1) * detectable(6))


def test_the_p_of_a_verdict_is_that_of_its_weakest_part():
    assert judge("", [THERE], [WIDE]).p == WIDE.p_of_claim > THERE.p_of_claim == THERE.p / 2
    assert judge("", [REVERSED], [THERE]).p == 1 - REVERSED.p / 2
    assert judge("", [THERE], [FEW]).p == judge("", [], []).p == 1


def surely(p_of: float):
    """A supported verdict whose weakest part has about this p."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=16)
    values = (values - values.mean()) / values.std(ddof=1)
    effect = over_seeds("", values + stats.t.isf(p_of, 15) / 4)
    return judge(f"p = {p_of:g}", [effect], [effect])


def test_claims_stay_supported_while_the_false_discovery_rate_is_held():
    verdicts = [surely(p) for p in (0.02, 1e-5, 0.001)]
    assert [verdict.label for verdict in verdicts] == [SUPPORTED] * 3
    assert [verdict.p for verdict in verdicts] == pytest.approx([0.02, 1e-5, 0.001])
    # Benjamini and Yekutieli by hand: p × m / rank × (1 + 1/2 + 1/3)
    assert discovered(verdicts) == [True, True, True]  # 0.02 × 3 / 3 × 1.83 = 0.037
    assert (
        discovered(verdicts[1:2] + verdicts[2:] + [judge("", [REVERSED], [THERE])] * 38) == [True, False] + [False] * 38
    )  # 0.001 × 40 / 2 × 4.28 = 0.086
    assert discovered([]) == []


def test_it_is_said_what_many_claims_leave_over():
    nothing = judge("nothing", [REVERSED], [THERE])
    assert several_judged([surely(0.02), surely(1e-6), nothing, nothing]) == (
        "4 claims were judged, of which chance alone would find at most 0.1 supported, and 2 are; with the false "
        "discovery rate held at 5 %: p = 1e-06."  # 0.02 × 4 / 2 × 2.08 = 0.083
    )
    assert several_judged([nothing, nothing]).endswith("and 0 are; with the false discovery rate held at 5 %: none.")
