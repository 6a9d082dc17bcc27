"""What one seed says: associations within its trainings, rises over them, how often one group exceeds another."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from gmmcnn.constants import Stream
from gmmcnn.experiments.intervals import CONFIDENCE


def spearman(x: ArrayLike, y: ArrayLike) -> Any:
    """Rank correlation; 0 where either does not vary, NaN for fewer than three pairs.

    Parameters
    ----------
    x, y : (R,) or (R, G)
        Two variables, or G of them.

    Returns
    -------
    float or (G,) float64
    """
    return _correlation(_ranks(x), _ranks(y)).reshape(_shape(x, y))[()]


def partial_spearman(x: ArrayLike, y: ArrayLike, *given: ArrayLike, degree: int = 1) -> Any:
    """Rank correlation of ``x`` and ``y`` given others: that of the residuals of linear fits between ranks.

    NaN where there are fewer than two rows more than the fit has parameters, and where what is given determines the
    ranks of ``y``: then nothing can be said about ``y`` apart from it. 0 where it determines those of ``x``.

    Parameters
    ----------
    x, y : (R,) or (R, G)
        Two variables, or G of them.
    *given : (R,) or (R, G)
        What is held.
    degree : int
        Hold the powers of the given ranks up to this one too. A variable that follows another by a curve is no line in
        its ranks once noise hides where the curve is flat, and what is left of it would correlate with a third.

    Returns
    -------
    float or (G,) float64
    """
    held = [_centred(_ranks(values)) for values in given]
    held += [_centred((rank / len(rank)) ** power) for power in range(2, degree + 1) for rank in held]
    residual_x, residual_y = (_residual(_ranks(values), held) for values in (x, y))
    unknown = _constant(residual_y) | (len(residual_x) < len(held) + 3)
    correlation = np.where(unknown, np.nan, _correlation(residual_x, residual_y))
    return correlation.reshape(_shape(x, y, *given))[()]


def rank_regression(y: ArrayLike, *x: ArrayLike) -> NDArray[np.float64]:
    """Standardised coefficients of a linear regression between ranks: what each variable adds to the others.

    Parameters
    ----------
    y : (R,)
    *x : (R,)
        X variables.

    Returns
    -------
    (X,) float64
        In standard deviations of the ranks of ``y`` for one of those of ``x``. All 0 where ``y`` does not vary; NaN
        where the variables determine each other, or there are not more rows than variables and two.
    """
    ranks = _centred(np.column_stack([_ranks(values) for values in (*x, y)]))
    scale = ranks.std(axis=0)
    if not scale[-1]:
        return np.zeros(len(x))
    predictors = ranks[:, :-1] / np.where(scale[:-1] > 0, scale[:-1], 1)
    coefficients, _, rank, _ = np.linalg.lstsq(predictors, ranks[:, -1] / scale[-1], rcond=1e-9)
    return coefficients if rank == len(x) and len(ranks) > len(x) + 2 else np.full(len(x), np.nan)


def _ranks(values: ArrayLike) -> NDArray[np.float64]:
    """(R, G) ranks from 1, of one variable (R, 1)."""
    return stats.rankdata(values, axis=0).reshape(len(np.asarray(values)), -1)


def _shape(*variables: ArrayLike) -> tuple[int, ...]:
    """() for variables (R,), (G,) where one of them is (R, G)."""
    return np.broadcast_shapes(*(np.shape(values)[1:] for values in variables))


def _centred(values: NDArray) -> NDArray:
    return values - values.mean(axis=0)


def _residual(values: NDArray, given: list[NDArray]) -> NDArray:
    """Remove from (R, G) values what lines in the given, centred (R, G) variables explain, by Gram-Schmidt."""
    directions: list[NDArray] = []
    for variable in sorted(given, key=np.size):  # those that are the same in all columns stay one column
        for earlier in directions:
            variable = variable - _along(variable, earlier)
        directions.append(np.where(_constant(variable), 0, variable))
    left = _centred(values)
    for direction in directions:
        left = left - _along(left, direction)
    return left


def _along(values: NDArray, direction: NDArray) -> NDArray:
    """Part of (R, G) values along a direction (R, G), 0 along none."""
    length = (direction**2).sum(axis=0)
    return direction * ((direction * values).sum(axis=0) / np.where(length > 0, length, 1))


def _constant(values: NDArray) -> Any:
    return np.ptp(values, axis=0) <= 1e-9 * len(values)


def _correlation(x: NDArray, y: NDArray) -> NDArray[np.float64]:
    """(G,) Pearson coefficients of (R, G) or (R, 1) variables."""
    x, y = _centred(x), _centred(y)
    products = (x * y).sum(axis=0)
    if len(x) < 3:
        return np.full_like(products, np.nan)
    varies = ~(_constant(x) | _constant(y))
    scale = np.sqrt((x**2).sum(axis=0) * (y**2).sum(axis=0))
    return np.clip(np.where(varies, products, 0) / np.where(varies, scale, 1), -1, 1)


def by_seed(table: pd.DataFrame, measure: Callable[[pd.DataFrame], float]) -> NDArray[np.float64]:
    """Measure the rows of each seed on their own: (S,) numbers, by ascending seed."""
    return np.array([measure(rows) for _, rows in table.groupby("seed", sort=True)], float)


def rise(table: pd.DataFrame, column: str | list[str]) -> Any:
    """Difference between the means of a column, or several, over the last and the first third of the rows, by epoch."""
    values = table.sort_values("epoch")[column].to_numpy(float)
    third = max(1, len(values) // 3)
    return values[-third:].mean(axis=0) - values[:third].mean(axis=0)


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
