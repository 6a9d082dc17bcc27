"""Intervals and tests of a mean over few seeds, and how large an effect they find.

For few seeds they are those of the exact sign-flip test (Fisher, *The Design of Experiments*, 1935): if the numbers lie
symmetrically about their mean, the means of all subsets of them divide the line into equally probable parts (Hartigan,
"Using subsample values as typical values", 1969), whatever the distribution. Fewer than :data:`MIN_SEEDS` allow no
interval of 95 %, however well they agree.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

CONFIDENCE = 0.95
"""Of every interval."""

MIN_SEEDS = 6
"""Fewer seeds decide nothing: of the 32 sign patterns of five, none is as rare as 1 in 40."""

EXACT_SEEDS = 12
"""Up to so many seeds the sign-flip test is made, over all subsets; for more, Student's, which agrees with it there."""

POWER = 0.8
"""With which an effect of the :func:`detectable` size is found."""


def limits(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ends of 95 % intervals of means.

    Parameters
    ----------
    values : (..., S) float64
        At least two numbers each.

    Returns
    -------
    low, high : (...) float64
        NaN for fewer than :data:`MIN_SEEDS` numbers.
    """
    n = values.shape[-1]
    if n < MIN_SEEDS:
        return (np.full(values.shape[:-1], np.nan),) * 2
    if n > EXACT_SEEDS:
        half = special.stdtrit(n - 1, (1 + CONFIDENCE) / 2) * values.std(axis=-1, ddof=1) / np.sqrt(n)
        return values.mean(axis=-1) - half, values.mean(axis=-1) + half
    means = np.sort(values @ _subsets(n), axis=-1)
    rank = int((1 - CONFIDENCE) / 2 * 2**n)
    return means[..., rank - 1], means[..., -rank]


def p_value(values: NDArray[np.float64], null: float = 0.0) -> NDArray[np.float64]:
    """Two-sided p of the hypothesis that the mean is ``null``: exact, of the sign-flip test, or Student's.

    Parameters
    ----------
    values : (..., S) float64
        At least two numbers each.

    Returns
    -------
    (...) float64
    """
    n, shifted = values.shape[-1], values - null
    alike = np.ptp(shifted, axis=-1) <= 1e-12 * np.maximum(1, np.abs(shifted).max(axis=-1))
    if n > EXACT_SEEDS:
        error = np.where(alike, 1, shifted.std(axis=-1, ddof=1)) / np.sqrt(n)
        students = 2 * special.stdtr(n - 1, -np.abs(shifted.mean(axis=-1)) / error)
        of_signs = np.where(np.abs(shifted).max(axis=-1) <= 1e-12, 1.0, 2.0 ** (1 - n))
        return np.where(alike, of_signs, students)
    means = shifted @ _subsets(n)
    tiny = 1e-12 * np.abs(shifted).max(axis=-1, keepdims=True)  # a sum that is 0 but for rounding
    beyond = np.minimum((means <= tiny).sum(axis=-1), (means >= -tiny).sum(axis=-1))
    return np.minimum(1, 2 * (1 + beyond) / 2**n)


@cache
def _subsets(n: int) -> NDArray[np.float64]:
    """(S, 2^S - 1) float64: each column averages the numbers of one subset that is not empty."""
    members = (np.arange(1, 2**n) >> np.arange(n)[:, None]) & 1
    return members / members.sum(axis=0)


@cache
def detectable(n: int) -> float:
    """Effect, in standard deviations over seeds, that n seeds find with a probability of 80 %; NaN where none is.

    For normally distributed numbers: from 2,000 drawn samples where the test is exact (an effect moves the interval
    by its own size), else from the noncentral t distribution.
    """
    if n < MIN_SEEDS:
        return np.nan
    if n <= EXACT_SEEDS:
        drawn = np.random.default_rng(0).normal(size=(20, 100, n))  # in parts: each has 2^n - 1 subsets
        return float(np.quantile([-limits(part)[0] for part in drawn], POWER))
    least = special.stdtrit(n - 1, (1 + CONFIDENCE) / 2)
    return float(optimize.brentq(lambda size: stats.nct.sf(least, n - 1, size * np.sqrt(n)) - POWER, 0.1, 5))
