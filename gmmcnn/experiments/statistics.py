"""From a table of one experiment to a verdict: effect sizes, intervals over seeds, tests.

The unit of every test is the seed, a network trained from its own initial weights. The epochs of one training are no
independent observations: count and generalisation gap both drift with time, so within one run almost any two curves
correlate, and the number of epochs says nothing about how sure one may be. Each seed therefore gives one number (an
association, a difference, an AUC), and the interval and the test are about the mean of these numbers over seeds.

An effect is *specific* where a control does not show it too; which controls an experiment has, it says itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from gmmcnn.constants import Stream

MIN_SEEDS = 3
"""Fewer seeds support nothing: an interval from two of them is as good as none."""

CONFIDENCE = 0.95

SUPPORTED = "supported"
NOT_SUPPORTED = "not supported"
NOT_SPECIFIC = "not specific to overfitting"


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % interval.

    Attributes
    ----------
    name : str
        What was measured.
    value : float
        Mean over seeds; NaN where no seed gave a number.
    low, high : float
        Limits of the interval; NaN where the seeds allow none.
    p : float
        Two-sided, of the hypothesis that the mean is ``null``; NaN where the seeds allow no test.
    n : int
        Seeds that gave a number.
    null : float
        Value without an effect.
    """

    name: str
    value: float
    low: float
    high: float
    p: float
    n: int
    null: float = 0.0

    @property
    def made(self) -> bool:
        """Whether there are seeds enough to judge by."""
        return self.n >= MIN_SEEDS

    @property
    def positive(self) -> bool:
        """Whether the effect is there, in the direction of the claim: the whole interval lies above ``null``."""
        return self.made and self.low > self.null

    def __str__(self) -> str:
        if self.n == 0:
            return f"{self.name} undefined"
        interval = "without interval" if np.isnan(self.low) else f"[{self.low:+.3g}, {self.high:+.3g}]"
        return f"{self.name} {self.value:+.3g} {interval} over {self.n} seed{'s' if self.n > 1 else ''}" + (
            "" if np.isnan(self.p) else f", p = {self.p:.2g}"
        )


def over_seeds(
    name: str, values: ArrayLike, null: float = 0.0, *, possible: tuple[float, float] = (-np.inf, np.inf)
) -> Estimate:
    """Estimate a mean over seeds, with Student's interval and test.

    Where all seeds give the very same number, as rank correlations of few rounds do when all are 1, the interval has no
    width: agreement must not count for less than near-agreement does. The test has no answer then (p is NaN).

    Parameters
    ----------
    name : str
        What was measured.
    values : (S,) float
        One number a seed; NaN where a seed gives none.
    null : float
        Value without an effect.
    possible : (low, high)
        Values that the mean can have; the interval ends there.
    """
    known = np.asarray(values, float)
    known = known[np.isfinite(known)]
    n = len(known)
    mean = float(known.mean()) if n else np.nan
    if n < 2:
        return Estimate(name, mean, np.nan, np.nan, np.nan, n, null)
    error = float(known.std(ddof=1)) / np.sqrt(n)
    if error <= 1e-12 * max(1.0, abs(mean)):
        return Estimate(name, mean, mean, mean, 1.0 if np.isclose(mean, null, atol=1e-12) else np.nan, n, null)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error
    p = float(2 * stats.t.sf(abs(mean - null) / error, n - 1))
    low, high = np.clip([mean - half, mean + half], *possible)
    return Estimate(name, mean, float(low), float(high), p, n, null)


@dataclass(frozen=True)
class Verdict:
    """What an experiment says about a claim.

    Attributes
    ----------
    claim : str
        The claim, in words.
    label : str
        Exactly one of :data:`SUPPORTED`, :data:`NOT_SUPPORTED`, :data:`NOT_SPECIFIC`.
    effects : tuple of Estimate
        What the claim says must be there.
    checks : tuple of Estimate
        What must be there besides, if the effect is to be specific.
    """

    claim: str
    label: str
    effects: tuple[Estimate, ...]
    checks: tuple[Estimate, ...]

    def __str__(self) -> str:
        parts = [str(estimate) for estimate in self.effects]
        parts += [f"{check} ({_outcome(check)})" for check in self.checks]
        return f"{self.claim}: {self.label}. " + "; ".join(parts)


def _outcome(check: Estimate) -> str:
    if not check.made:
        return "too few seeds to judge"
    return "holds" if check.positive else "not shown"


def judge(claim: str, effects: Sequence[Estimate], checks: Sequence[Estimate]) -> Verdict:
    """Reach a verdict.

    *Not supported* unless every effect is positive. Then *supported* if all checks that could be made are positive,
    and at least one could; else *not specific to overfitting*. A check that fewer than :data:`MIN_SEEDS` seeds answer
    could not be made.
    """
    made = [check for check in checks if check.made]
    if not effects or not all(effect.positive for effect in effects):
        label = NOT_SUPPORTED
    elif made and all(check.positive for check in made):
        label = SUPPORTED
    else:
        label = NOT_SPECIFIC
    return Verdict(claim, label, tuple(effects), tuple(checks))


def spearman(x: ArrayLike, y: ArrayLike) -> Any:
    """Rank correlation; 0 where either does not vary, NaN for fewer than three pairs.

    Parameters
    ----------
    x : (R,) or (R, G)
        One variable, or G of them.
    y : (R,)

    Returns
    -------
    float or (G,) float64
    """
    return _correlation(stats.rankdata(x, axis=0), stats.rankdata(y))


def partial_spearman(x: ArrayLike, y: ArrayLike, given: ArrayLike) -> Any:
    """Rank correlation of ``x`` and ``y`` given a third variable: that of the residuals of linear fits between ranks.

    NaN for fewer than four triples, and where ``given`` determines the ranks of ``y``: then nothing can be said about
    ``y`` apart from it. 0 where it determines those of ``x``.

    Parameters
    ----------
    x : (R,) or (R, G)
        One variable, or G of them.
    y, given : (R,)

    Returns
    -------
    float or (G,) float64
    """
    ranks_x, ranks_y, ranks_given = (stats.rankdata(values, axis=0) for values in (x, y, given))
    residual_x, residual_y = _residual(ranks_x, ranks_given), _residual(ranks_y, ranks_given)
    if len(ranks_x) < 4 or _constant(residual_y):
        return np.full(ranks_x.shape[1:], np.nan)[()]
    return _correlation(residual_x, residual_y)


def _residual(values: NDArray, given: NDArray) -> NDArray:
    centred, direction = values - values.mean(axis=0), given - given.mean()
    norm = direction @ direction
    return centred - np.multiply.outer(direction, direction @ centred / norm) if norm > 0 else centred


def _constant(values: NDArray) -> Any:
    return np.ptp(values, axis=0) <= 1e-9 * len(values)


def _correlation(x: NDArray, y: NDArray) -> Any:
    """Pearson coefficients of (R,) or (R, G) with (R,)."""
    if len(x) < 3:
        return np.full(x.shape[1:], np.nan)[()]
    varies = ~(_constant(x) | _constant(y))
    x, y = x - x.mean(axis=0), y - y.mean()
    scale = np.sqrt((x**2).sum(axis=0) * (y @ y))
    return np.clip(np.where(varies, y @ x, 0) / np.where(varies, scale, 1), -1, 1)


def by_seed(table: pd.DataFrame, measure: Callable[[pd.DataFrame], float]) -> NDArray[np.float64]:
    """Measure the rows of each seed on their own: (S,) numbers, by ascending seed."""
    return np.array([measure(rows) for _, rows in table.groupby("seed", sort=True)], float)


def rise(table: pd.DataFrame, column: str | list[str]) -> Any:
    """Difference between the means of a column, or several, over the last and the first third of the rows, by epoch."""
    values = table.sort_values("epoch")[column].to_numpy(float)
    third = max(1, len(values) // 3)
    return values[-third:].mean(axis=0) - values[:third].mean(axis=0)


def judge_over_training(table: pd.DataFrame, column: str, claim: str) -> Verdict:
    """Judge whether a count follows the generalisation gap over training, and follows it for what it is.

    Parameters
    ----------
    table : DataFrame
        One row per network and epoch: ``seed``, ``condition`` (``overfitting`` or ``control``: the same network
        trained for as many updates without overfitting), ``epoch`` (comparable between the conditions), ``gap``
        (validation minus training loss), and the count.
    column : str
        Column of the count.
    claim : str
        In words.

    Returns
    -------
    Verdict
        Its effect is the association within seeds (mean Spearman coefficient of count and gap). The checks are the
        association *given the epoch*, over both networks of a seed: does the one with the wider gap have the higher
        count at the same epoch? And the rise of the count beyond that of the control of the same seed.
    """
    overfitting = table[table["condition"] == "overfitting"]
    control = table[table["condition"] == "control"]
    association = by_seed(overfitting, lambda rows: spearman(rows[column], rows["gap"]))
    given_epoch = by_seed(table, lambda rows: partial_spearman(rows[column], rows["gap"], rows["epoch"]))
    checks = [over_seeds("given the epoch", given_epoch, possible=(-1, 1))]
    paired = sorted(set(overfitting["seed"]) & set(control["seed"]))
    excess = [
        rise(overfitting[overfitting["seed"] == seed], column) - rise(control[control["seed"] == seed], column)
        for seed in paired
    ]
    checks.append(over_seeds("rise beyond the control's", excess))
    effect = over_seeds("Spearman with the gap within seeds", association, possible=(-1, 1))
    return judge(claim, [effect], checks)


def auc(values: ArrayLike, others: ArrayLike) -> float:
    """Probability that one of ``values`` exceeds one of ``others``, ties counted half (Mann-Whitney); NaN if empty."""
    values, others = np.asarray(values, float), np.asarray(others, float)
    if not len(values) or not len(others):
        return np.nan
    ranks = stats.rankdata(np.concatenate([values, others]))[: len(values)]
    return float((ranks.sum() - len(values) * (len(values) + 1) / 2) / (len(values) * len(others)))


def bootstrap_interval(
    values: ArrayLike, others: ArrayLike, *, n_resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of :func:`auc` when both groups of samples are drawn again (NaN if one is empty)."""
    values, others = np.asarray(values, float), np.asarray(others, float)
    if not len(values) or not len(others):
        return np.nan, np.nan
    rng = np.random.default_rng([seed, Stream.BOOTSTRAP])
    drawn = [auc(rng.choice(values, len(values)), rng.choice(others, len(others))) for _ in range(n_resamples)]
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def permutation_p(observed: float, controls: ArrayLike) -> float:
    """Share of random controls that do at least as well, the observed one counted among them; NaN without controls."""
    controls = np.asarray(controls, float)
    return float((1 + (controls >= observed).sum()) / (1 + len(controls))) if len(controls) else np.nan


def estimates_table(verdict: Verdict) -> pd.DataFrame:
    """One row per estimate of a verdict: what it rests on."""
    rows = [(estimate, "effect") for estimate in verdict.effects] + [(check, "check") for check in verdict.checks]
    return pd.DataFrame(
        [
            {
                "role": role, "name": e.name, "value": e.value, "low": e.low, "high": e.high, "p": e.p,
                "seeds": e.n, "null": e.null, "positive": e.positive,
            }
            for e, role in rows
        ]
    )  # fmt: skip
