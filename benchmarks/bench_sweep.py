"""Mixture sweeps: ours beside scikit-learn, torchgmm and pomegranate over a pool of processes, gmm-gpu and plain torch.

    python -m benchmarks.bench_sweep [--json FILE] [--only CASE]

All fit K = 2 … 10 with full covariances from one k-means start, to the same tolerance and cap, on the scores of a
trained LeNet-5. Slow rivals do a share of the filters, and their time is scaled. By how much the log-likelihood of a
sample is above ours is printed as a check that the work is the same. Cases:

large    256 filters, N = 1000
starts   the same, ours from ten starts and scikit-learn's from one
default  640 problems of N = 200: ten probe batches of 64 filters
peak     the rate of our EM against the processor's peak of fused multiply-adds
"""

import argparse
import warnings
from collections.abc import Iterable

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray

from benchmarks import cases, peaks, rivals, timing
from gmmcnn.hardware.threads import available_cores
from gmmcnn.mixture.sweep import GaussianMixtureSweep

FLOPS_PER_CELL = 35
"""Of a sample and component, d = 2, a fused multiply-add counting 2: u 6, exponent 4, exp2 12, likelihood 1;
responsibility 1, its sum 1, r u 2, Σ r u 2, Σ r u uᵀ 6."""

ONE_IN = {"scikit-learn": 4, "plain torch": 4, "gmm-gpu": 8, "pomegranate": 32, "torchgmm": 64}
"""Each rival does one filter in so many."""


def main() -> None:
    parser = cases.parser(__doc__)
    parser.add_argument("--filters", type=int, default=cases.FILTERS)
    parser.add_argument("--only", choices=("large", "starts", "default", "peak"), help="one case")
    parser.add_argument("--rivals", nargs="+", choices=ONE_IN, default=list(ONE_IN), help="only these")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    many = 10 * arguments.filters // 4
    sweeps: dict[str, tuple[int, int, int, Iterable[str]]] = {
        "large": (cases.LARGE_BATCH, arguments.filters, 1, arguments.rivals),
        "starts": (cases.LARGE_BATCH, arguments.filters, 10, ["scikit-learn"]),
        "default": (cases.DEFAULT_BATCH, many, 1, arguments.rivals),
    }
    with cases.pool() as pool:
        for case, (n_samples, n_filters, n_init, names) in sweeps.items():
            if arguments.only in (None, case):
                scores = cases.standardised(cases.trained_scores(n_samples, n_filters))
                measure(scores, n_init, filter(rivals.installed, names), pool, arguments)
    if arguments.only in (None, "peak"):
        report_peak(cases.trained_scores(cases.LARGE_BATCH, arguments.filters), arguments)


def measure(scores: NDArray, n_init: int, names: Iterable[str], pool: Parallel, arguments: argparse.Namespace) -> None:
    """Time ourselves and the named rivals on the same scores."""
    ours = timing.Contestant(lambda: fit(scores, n_init=n_init).lower_bound_)
    others = {}
    for name in names:
        part = scores[:: ONE_IN[name]]
        sweep = lambda name=name, part=part: sweep_by(name, part, pool)  # noqa: E731
        others[name] = timing.Contestant(sweep, len(part) / len(scores))
    comparisons = timing.compare(ours, others, arguments.rounds)
    checks = {name: above(rival.answer, ours.answer[:: ONE_IN[name]]) for name, rival in others.items()}
    sizes = {"filters": len(scores), "N": scores.shape[1], "K": "2…10", "d": 2, "our starts": n_init}
    timing.report("bench_sweep", comparisons, {**sizes, "threads": available_cores()}, arguments.json, checks)


def fit(scores: NDArray, **parameters: object) -> GaussianMixtureSweep:
    return GaussianMixtureSweep(k_min=cases.K_MIN, k_max=cases.K_MAX, engine="cpu", **parameters).fit(scores)  # type: ignore[arg-type]


def sweep_by(rival: str, scores: NDArray, pool: Parallel) -> NDArray:
    """Mean log-likelihoods (F, n_k) of a sample by a rival."""
    if rival in rivals.BATCHED:
        return rivals.BATCHED[rival](scores, cases.K_MIN, cases.K_MAX)
    return np.array(pool(delayed(rivals.ONE_BY_ONE[rival])(x, cases.K_MIN, cases.K_MAX) for x in scores))


def above(theirs: NDArray, ours: NDArray) -> str:
    """How a rival's log-likelihoods compare with ours, fit by fit, and how many fits it failed."""
    difference = theirs - ours
    failed = np.isnan(theirs).sum()
    return f"log-likelihood {np.nanmean(difference):+.4f}" + (f", {failed} of {theirs.size} failed" if failed else "")


def report_peak(scores: NDArray, arguments: argparse.Namespace) -> None:
    """EM's flops a second on one core, against the peak measured beside it."""
    peak = peaks.multiply_add()
    few, many = 3, 23
    times = [timing.best(lambda n=n: fit(scores, threads=1, tol=0, max_iter=n), 5) for n in (few, many)]
    cells = len(scores) * scores.shape[1] * sum(range(cases.K_MIN, cases.K_MAX + 1)) * (many - few)
    ns_per_cell = (times[1] - times[0]) / cells * 1e9
    rate = FLOPS_PER_CELL / ns_per_cell * 1e9
    print(f"EM: {ns_per_cell:.3f} ns a cell = {rate / 1e9:.0f} Gflop/s, {rate / peak:.0%} of {peak / 1e9:.0f} measured")
    content = {"title": "sweep_peak", "ns_per_cell": ns_per_cell, "gflops": rate / 1e9, "peak_gflops": peak / 1e9}
    timing.write_json(arguments.json, {**content, "flops_per_cell": FLOPS_PER_CELL})


if __name__ == "__main__":
    main()
