"""Mixture sweeps: ours beside scikit-learn over a pool, plain torch, and other libraries.

    python -m benchmarks.bench_sweep [--json FILE] [--peak]

All fit K = 2 … 10 from one start with the same tolerance and cap, on the scores of a trained LeNet-5. Slow rivals do
a share of the filters, and their time is scaled. ``--peak`` also measures the rate of our EM against the processor's
peak of fused multiply-adds.
"""

import argparse
import os
import warnings

from numba import njit
from numpy.typing import NDArray

from benchmarks import cases, rivals, timing
from gmmcnn.mixture.sweep import GaussianMixtureSweep
from gmmcnn.mixture.vectors import aligned_empty, fma, lanes, load, registers, store

FLOPS_PER_CELL = 35
"""Of a sample and component, d = 2, a fused multiply-add counting 2: u 6, exponent 4, exp2 12, likelihood 1;
responsibility 1, its sum 1, r u 2, Σ r u 2, Σ r u uᵀ 6."""


def main() -> None:
    parser = cases.parser(__doc__)
    parser.add_argument("--filters", type=int, default=cases.FILTERS)
    parser.add_argument("--sklearn-share", type=float, default=0.125)
    parser.add_argument("--peak", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    threads = len(os.sched_getaffinity(0))
    cases.limit_torch_threads(threads)
    for n_samples, n_filters, n_init in [
        (cases.LARGE_BATCH, arguments.filters, 1),
        (cases.LARGE_BATCH, arguments.filters, 10),
        (cases.DEFAULT_BATCH, 10 * arguments.filters // 4, 1),
    ]:
        measure(cases.trained_scores(n_samples, n_filters), n_init, threads, arguments)
    if arguments.peak:
        report_peak(cases.trained_scores(cases.LARGE_BATCH, arguments.filters), arguments)


def measure(scores: NDArray, n_init: int, threads: int, arguments: argparse.Namespace) -> None:
    others = contestants(scores, threads, arguments.sklearn_share)
    comparisons = timing.compare(lambda: fit(scores, n_init=n_init), others, arguments.rounds)
    sizes = {
        "filters": len(scores),
        "N": scores.shape[1],
        "K": "2…10",
        "d": 2,
        "our starts": n_init,
        "threads": threads,
    }
    timing.report("bench_sweep", comparisons, sizes, arguments.json)


def fit(scores: NDArray, **parameters: object) -> GaussianMixtureSweep:
    return GaussianMixtureSweep(k_min=cases.K_MIN, k_max=cases.K_MAX, engine="cpu", **parameters).fit(scores)  # type: ignore[arg-type]


def contestants(scores: NDArray, threads: int, share: float) -> dict:
    pool = rivals.sklearn_pool(threads)
    part = scores[: max(threads * 2, int(len(scores) * share))]
    few = scores[:2]
    result = {
        "scikit-learn + joblib": (lambda: pool(part, cases.K_MIN, cases.K_MAX), len(part) / len(scores)),
        "batched torch": (lambda: rivals.torch_sweep(part, cases.K_MIN, cases.K_MAX), len(part) / len(scores)),
    }
    for name, sweep in rivals.installed_mixture_libraries().items():
        result[name] = (lambda sweep=sweep: sweep(few, cases.K_MIN, cases.K_MAX), len(few) / len(scores))
    return result


@njit(nogil=True, error_model="numpy")
def multiply_add(repeats: int, numbers: NDArray) -> None:
    """12 independent chains of fused multiply-adds."""
    n = 64 // numbers.itemsize
    chains = registers(load(numbers, 0))
    factor, summand = load(numbers, 12 * n), load(numbers, 13 * n)
    for i in range(12):
        chains[i] = load(numbers, i * n)
    for _ in range(repeats):
        for i in range(12):
            chains[i] = fma(chains[i], factor, summand)
    for i in range(12):
        store(numbers, i * n, chains[i])


def report_peak(scores: NDArray, arguments: argparse.Namespace) -> None:
    """EM's flops a second on one core, against the peak measured beside it."""
    numbers = aligned_empty(14 * lanes("float32"), "float32")
    numbers[:] = 0.5
    repeats = 3_000_000
    peak = 2 * 12 * lanes("float32") * repeats / timing.best(lambda: multiply_add(repeats, numbers), 10)
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
