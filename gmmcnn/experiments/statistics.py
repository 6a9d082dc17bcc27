"""From one number a seed to a verdict: intervals over seeds, and the five words that may be said about a claim.

The unit of every test is the seed, a network trained from its own initial weights. The epochs of one training are no
independent observations: count and generalisation gap both drift with time, so within one run almost any two curves
correlate, and the number of epochs says nothing about how sure one may be. Each seed therefore gives one number (an
association, a difference, an AUC), and the interval and the test are about the mean of these numbers over seeds.

=========================  ==========================================================================================
*supported*                every effect is there, and so is every check: the whole interval lies on the claimed side
*refuted*                  it is certainly the other way round
*no effect larger than X*  what there may be is certainly smaller than the smallest effect of interest
*not specific*             the effect is there, and a control shows as much: what goes beyond it is certainly smaller
*undecided*                anything else: too few seeds, too wide intervals, a check that could not be made
=========================  ==========================================================================================

Each estimate says how large an effect has to be to be found (:attr:`Estimate.detectable`): *undecided* with a large one
says little about the claim and much about the experiment.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from gmmcnn.experiments.intervals import CONFIDENCE, MIN_SEEDS, detectable, limits, p_value

SUPPORTED = "supported"
REFUTED = "refuted"
NO_EFFECT = "no effect larger than X"
NOT_SPECIFIC = "not specific"
UNDECIDED = "undecided"
WORDS = (SUPPORTED, REFUTED, NO_EFFECT, NOT_SPECIFIC, UNDECIDED)

RULE = 3
"""Version of the rule by which verdicts are reached: one that is stored is of one rule only."""


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
    smallest : float
        Smallest effect of interest, as a difference from ``null``; NaN where none is stated.
    detectable : float
        Difference from ``null`` that as many seeds with this spread find with a probability of 80 %; NaN where there
        is none, for want of seeds, or where all seeds gave the same number.
    """

    name: str
    value: float
    low: float
    high: float
    p: float
    n: int
    null: float = 0.0
    smallest: float = np.nan
    detectable: float = np.nan

    @property
    def made(self) -> bool:
        """Whether there are seeds enough to judge by."""
        return self.n >= MIN_SEEDS

    @property
    def positive(self) -> bool:
        """Whether the effect is there, in the direction of the claim."""
        return self.made and self.p <= 1 - CONFIDENCE and self.value > self.null

    @property
    def p_of_claim(self) -> float:
        """One-sided p of the hypothesis that there is no effect in the direction of the claim; 1 with too few seeds."""
        if not self.made or np.isnan(self.p):
            return 1.0
        return self.p / 2 if self.value > self.null else 1 - self.p / 2

    @property
    def small(self) -> bool:
        """Whether the effect is certainly smaller than the smallest one of interest, or none, or a reversed one."""
        return self.made and self.high < self.null + self.smallest

    def reversed(self, among: int = 1) -> bool:
        """Whether the effect is there in the other direction, where any of so many estimates would count."""
        return self.made and self.p <= (1 - CONFIDENCE) / among and self.value < self.null

    def __str__(self) -> str:
        if self.n == 0:
            return f"{self.name} undefined"
        interval = "without interval" if np.isnan(self.low) else f"[{self.low:+.3g}, {self.high:+.3g}]"
        parts = [f"{self.name} {self.value:+.3g} {interval} over {self.n} seed{'s' if self.n > 1 else ''}"]
        parts += [] if np.isnan(self.p) else [f"p = {self.p:.2g}"]
        if not self.made:
            parts.append(f"nothing detectable with fewer than {MIN_SEEDS}")
        elif not np.isnan(self.detectable):
            parts.append(f"detectable {self.detectable:.2g}")
        return ", ".join(parts)


def over_seeds(
    name: str,
    values: ArrayLike,
    null: float = 0.0,
    *,
    smallest: float = np.nan,
    possible: tuple[float, float] = (-np.inf, np.inf),
) -> Estimate:
    """Estimate a mean over seeds.

    Where all seeds give the very same number, as rank correlations of few rounds do when all are 1, that does not show
    that others would. A share of seeds as large as 95 % confidence leaves open (Clopper and Pearson, 1934) may then
    give anything possible; where that has no bounds there is a test and no interval.

    Parameters
    ----------
    name : str
        What was measured.
    values : (S,) float
        One number a seed; NaN where a seed gives none.
    null : float
        Value without an effect.
    smallest : float
        Smallest effect of interest, as a difference from ``null``.
    possible : (low, high)
        Values that a seed, and so the mean, can have; the interval ends there.
    """
    known = np.asarray(values, float)
    known = known[np.isfinite(known)]
    n = len(known)
    mean = float(known.mean()) if n else np.nan
    if n < 2:
        return Estimate(name, mean, np.nan, np.nan, np.nan, n, null, smallest)
    spread = float(known.std(ddof=1))
    p = float(p_value(known, null))
    if spread <= 1e-12 * max(1.0, abs(mean)):
        others = 1 - ((1 - CONFIDENCE) / 2) ** (1 / n)
        ends = [mean + others * (end - mean) for end in possible] if n >= MIN_SEEDS else [np.nan] * 2
        low, high = (end if np.isfinite(end) else np.nan for end in ends)
        return Estimate(name, mean, low, high, p, n, null, smallest)
    low, high = (float(np.clip(end, *possible)) for end in limits(known))
    return Estimate(name, mean, low, high, p, n, null, smallest, spread * detectable(n))


@dataclass(frozen=True)
class Verdict:
    """What an experiment says about a claim.

    Attributes
    ----------
    claim : str
        The claim, in words.
    label : str
        Exactly one of :data:`WORDS`.
    effects : tuple of Estimate
        What the claim says must be there.
    checks : tuple of Estimate
        What must be there besides, if the effect is to be what the claim says it is.
    """

    claim: str
    label: str
    effects: tuple[Estimate, ...]
    checks: tuple[Estimate, ...]

    @property
    def p(self) -> float:
        """One-sided p of what *supported* says.

        That of the weakest of its effects and checks: all of them are needed (the intersection-union test; Berger,
        1982). 1 where one could not be made, or there is none.
        """
        return max((estimate.p_of_claim for estimate in (*self.effects, *self.checks)), default=1.0)

    @property
    def words(self) -> str:
        """The label, with the sizes that it speaks of."""
        if self.label != NO_EFFECT:
            return self.label
        sizes = [f"{e.smallest:.2g} ({e.name})" for e in (*self.effects, *self.checks) if e.small]
        return "no effect larger than " + ", ".join(sizes)

    def __str__(self) -> str:
        parts = [str(estimate) for estimate in self.effects]
        parts += [f"{check} ({_outcome(check)})" for check in self.checks]
        return f"{self.claim}: {self.words}. " + "; ".join(parts)


def _outcome(check: Estimate) -> str:
    if not check.made:
        return "too few seeds to judge"
    if check.positive:
        return "holds"
    if check.reversed():
        return "reversed"
    return f"smaller than {check.smallest:.2g}" if check.small else "not shown"


def judge(
    claim: str,
    effects: Sequence[Estimate],
    controls: Sequence[Estimate],
    *,
    besides: Sequence[Estimate] = (),
    confounded: bool = False,
) -> Verdict:
    """Reach a verdict.

    Parameters
    ----------
    claim : str
        In words.
    effects : sequence of Estimate
        What the claim says: all of them must be positive.
    controls : sequence of Estimate
        What the effect is beyond a control: all must be positive as well. One that is certainly small says that the
        control shows as much.
    besides : sequence of Estimate
        What must be positive too, but says nothing of a control where it is small: it may be so for want of
        information.
    confounded : bool
        Whether something else than what is claimed, as time, moves the effects too. Then a reversed effect refutes
        only together with all checks, and only a control can show that there is no larger one.

    Notes
    -----
    The first word that applies, in this order. *Supported*: all effects and all checks are positive, at least one
    check among them; one that could not be made is not. *Refuted*: an effect is reversed, or, if confounded, all
    effects and checks are. *Not specific*: all effects are positive and a control is small. *No effect larger than
    X*: an effect is small, or, if confounded, a control. Else *undecided*.
    """
    checks = (*controls, *besides)
    there = bool(effects) and all(effect.positive for effect in effects)
    if confounded:
        refuted = bool(effects and checks) and all(estimate.reversed() for estimate in (*effects, *checks))
    else:
        refuted = any(effect.reversed(among=len(effects)) for effect in effects)
    if there and checks and all(check.positive for check in checks):
        label = SUPPORTED
    elif refuted:
        label = REFUTED
    elif there and any(control.small for control in controls):
        label = NOT_SPECIFIC
    elif any(estimate.small for estimate in (controls if confounded else effects)):
        label = NO_EFFECT
    else:
        label = UNDECIDED
    return Verdict(claim, label, tuple(effects), checks)


def discovered(verdicts: Sequence[Verdict]) -> list[bool]:
    """Which of several claims stay *supported* where so many are judged: the false discovery rate is held at 5 %.

    By the procedure of Benjamini and Yekutieli (2001), which holds however the claims depend on each other, as those on
    the same networks do (:func:`scipy.stats.false_discovery_control`).
    """
    if not verdicts:
        return []
    q = stats.false_discovery_control([verdict.p for verdict in verdicts], method="by")
    return [bool(v.label == SUPPORTED and value <= 1 - CONFIDENCE) for v, value in zip(verdicts, q, strict=True)]


def several_judged(verdicts: Sequence[Verdict]) -> str:
    """What it means that so many claims were judged at once, in one line."""
    kept = [v.claim for v, stays in zip(verdicts, discovered(verdicts), strict=True) if stays]
    supported = sum(verdict.label == SUPPORTED for verdict in verdicts)
    expected = len(verdicts) * (1 - CONFIDENCE) / 2
    return (
        f"{len(verdicts)} claims were judged, of which chance alone would find at most {expected:.2g} supported, and "
        f"{supported} {'is' if supported == 1 else 'are'}; with the false discovery rate held at 5 %: "
        f"{'; '.join(kept) or 'none'}."
    )


def estimates_table(verdict: Verdict) -> pd.DataFrame:
    """One row per estimate of a verdict: what it rests on."""
    rows = [(estimate, "effect") for estimate in verdict.effects] + [(check, "check") for check in verdict.checks]
    return pd.DataFrame(
        [
            {
                "role": role, "name": e.name, "value": e.value, "low": e.low, "high": e.high, "p": e.p, "seeds": e.n,
                "null": e.null, "smallest": e.smallest, "detectable": e.detectable, "positive": e.positive,
            }
            for e, role in rows
        ]
    )  # fmt: skip
