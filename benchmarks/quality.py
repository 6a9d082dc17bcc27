"""Are our mixtures as good as scikit-learn's? Fit by fit, on networks that nothing was tuned on.

    python -m benchmarks.quality [--json FILE]

From the same start, the lower bound shall be within 1e-4 of scikit-learn's in float64 and 99.9 % of the labels of
converged fits equal. From starts of their own, equally many, our mean lower bound shall not be below scikit-learn's,
nor shall it be below by more than 1e-3 more often than above. Two equally good programs miss this by chance, hence the
probability that a fair coin is as far from half as the number of fits above and below.

Three networks, N = 200 and N = 1000, K = 2 … 10 on filters drawn at random, in the same units, with the same tolerance,
cap and regularisation.
"""

import warnings
from typing import NamedTuple

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.cluster import KMeans
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

from benchmarks import cases, timing
from benchmarks.networks import Network, live_scores
from gmmcnn.mixture.sweep import GaussianMixtureSweep

NETWORKS = (
    Network("simple_cnn", "digits", seed=11, epochs=10),
    Network("lenet5", "fashion_mnist", seed=12, epochs=8),
    Network("resnet8", "fashion_mnist", seed=13, epochs=2, images=2000),
)
COUNTS = range(cases.K_MIN, cases.K_MAX + 1)
SAME_BOUND, SAME_LABELS, WORSE = 1e-4, 0.999, 1e-3


class Fits(NamedTuple):
    """Mixtures of F filters for each of the n_k numbers of components."""

    lower_bounds: NDArray[np.float64]
    """(F, n_k)"""
    converged: NDArray[np.bool_]
    """(F, n_k)"""
    labels: NDArray[np.int8]
    """(F, n_k, N)"""


class Comparison(NamedTuple):
    """What is left of two sets of fits."""

    problems: int
    largest_difference: float
    """Of the lower bounds, either way."""
    within_bound: float
    """Share of fits whose lower bounds differ by at most ``SAME_BOUND``."""
    equal_labels: float
    """Share of the samples of fits that both converged."""
    mean_difference: float
    """Our lower bound less theirs."""
    standard_error: float
    """Of the mean difference; the values of K of one filter count as one observation."""
    above: int
    """Fits of ours that are better by more than ``WORSE``."""
    below: int
    """Fits of ours that are worse by more than ``WORSE``."""
    chance: float
    """Probability that a fair coin is as far from half as ``above`` and ``below``."""


def main() -> None:
    parser = cases.parser(__doc__)
    parser.add_argument("--filters", type=int, default=75, help="of each network and each N")
    parser.add_argument("--starts", type=int, default=5, help="beside one start, so many are compared")
    arguments = parser.parse_args()
    own: list[Comparison] = []
    with cases.pool() as pool:
        for n_samples in (cases.DEFAULT_BATCH, cases.LARGE_BATCH):
            scores = np.concatenate([live_scores(network, n_samples, arguments.filters) for network in NETWORKS])
            one_start = by_sklearn(scores, 1, pool)
            ours = {
                "same start": (1, by_us(scores, starts=kmeans_starts(scores, pool)), one_start),
                "own start": (1, by_us(scores), one_start),
                "own starts": (
                    arguments.starts,
                    by_us(scores, arguments.starts),
                    by_sklearn(scores, arguments.starts, pool),
                ),
            }
            print(f"N = {n_samples}, {len(scores)} filters of {len(NETWORKS)} networks, K = 2 … 10")
            for case, (n_init, actual, expected) in ours.items():
                compared = compare(actual, expected)
                print(f"  {case}, n_init = {n_init}: {describe(compared, case)}")
                about = {"title": "quality", "case": case, "N": n_samples, "n_init": n_init}
                timing.write_json(arguments.json, about | compared._asdict())
                own += [compared] if case != "same start" else []
    above, below = sum(one.above for one in own), sum(one.below for one in own)
    chance = binomtest(below, above + below).pvalue
    print(f"own starts, all: better in {above}, worse in {below} (a coin: p = {chance:.2f})")


def by_us(scores: NDArray, n_init: int = 1, starts: dict[int, NDArray] | None = None) -> Fits:
    """Every K as a sweep of its own, which gives its labels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fits that stop at the cap
        sweeps = [
            GaussianMixtureSweep(k_min=k, k_max=k, n_init=n_init, engine="cpu").fit(
                scores, {k: starts[k]} if starts else None
            )
            for k in COUNTS
        ]
    return Fits(
        np.concatenate([sweep.lower_bound_ for sweep in sweeps], axis=1),
        np.concatenate([sweep.converged_ for sweep in sweeps], axis=1),
        np.stack([sweep.labels_ for sweep in sweeps], axis=1),
    )


def by_sklearn(scores: NDArray, n_init: int, pool: Parallel) -> Fits:
    """The same by scikit-learn in float64."""
    fits = pool(delayed(_sklearn_fits)(x.astype(np.float64), n_init) for x in scores)
    return Fits(*(np.stack(parts) for parts in zip(*fits, strict=True)))


def _sklearn_fits(scores: NDArray[np.float64], n_init: int) -> tuple[NDArray, NDArray, NDArray]:
    reg_covar = 1e-6 * scores.var(axis=0).mean()
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore")
        fits = [GaussianMixture(k, n_init=n_init, reg_covar=reg_covar, random_state=0).fit(scores) for k in COUNTS]
        return (
            np.array([fit.lower_bound_ for fit in fits]),
            np.array([fit.converged_ for fit in fits]),
            np.array([fit.predict(scores) for fit in fits], np.int8),
        )


def kmeans_starts(scores: NDArray, pool: Parallel) -> dict[int, NDArray[np.int8]]:
    """Labels (F, N) for each K, from which scikit-learn's mixtures with one start and this random state start."""
    labels = np.stack(pool(delayed(_kmeans)(x.astype(np.float64)) for x in scores), axis=1)
    return dict(zip(COUNTS, labels, strict=True))


def _kmeans(scores: NDArray[np.float64]) -> NDArray[np.int8]:
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore")
        return np.array([KMeans(k, n_init=1, random_state=0).fit(scores).labels_ for k in COUNTS], np.int8)


def compare(actual: Fits, expected: Fits) -> Comparison:
    """Set our fits beside scikit-learn's."""
    difference = actual.lower_bounds - expected.lower_bounds
    of_filter = difference.mean(axis=1)
    both = actual.converged & expected.converged
    above, below = int((difference > WORSE).sum()), int((difference < -WORSE).sum())
    return Comparison(
        problems=difference.size,
        largest_difference=float(np.abs(difference).max()),
        within_bound=float((np.abs(difference) <= SAME_BOUND).mean()),
        equal_labels=float((actual.labels == expected.labels)[both].mean()),
        mean_difference=float(difference.mean()),
        standard_error=float(of_filter.std(ddof=1) / np.sqrt(len(of_filter))),
        above=above,
        below=below,
        chance=float(binomtest(below, above + below).pvalue) if above + below else 1.0,
    )


def describe(compared: Comparison, case: str) -> str:
    """The figures in words, and whether they are good enough."""
    if case == "same start":
        good = compared.largest_difference <= SAME_BOUND and compared.equal_labels >= SAME_LABELS
        figures = (
            f"{compared.problems} fits, lower bounds differ by {compared.largest_difference:.1e} at most, "
            f"{compared.within_bound:.2%} by no more than {SAME_BOUND:.0e}; {compared.equal_labels:.3%} of labels equal"
        )
    else:
        good = compared.mean_difference >= 0 and compared.below <= compared.above
        figures = (
            f"{compared.problems} fits, mean lower bound {compared.mean_difference:+.4f} ± "
            f"{compared.standard_error:.4f}; better by more than {WORSE:.0e} in {compared.above}, "
            f"worse in {compared.below} (a coin: p = {compared.chance:.2f})"
        )
    return f"{figures}: {'holds' if good else 'FAILS'}"


if __name__ == "__main__":
    main()
