"""How the sweep's time grows with filters, samples, threads and dimensions.

    python -m benchmarks.bench_scaling [--json FILE]

Times are those of whole sweeps, median over rounds of the ratio within a round. For threads the ceiling is measured
beside them: as many processes as cores, each with its part of the filters and one thread, which share nothing.
Samples beyond a probe batch are the batch repeated. For dimensions the time is that of EM alone, from sweeps with few
and with many iterations.
"""

import argparse
import statistics
import warnings
from collections.abc import Callable

import numpy as np
from joblib import delayed
from numpy.typing import NDArray

from benchmarks import cases, timing
from benchmarks.bench_sweep import fit
from gmmcnn.constants import MAX_DIMS
from gmmcnn.hardware.threads import available_cores
from gmmcnn.principal_components.pca import pca

SAMPLES = [(200, 800, 512), (1000, 8000, 128), (8000, 100_000, 32)]
"""Few and many samples, and how many filters have them."""

EM_ITERATIONS = (3, 23)


def main() -> None:
    parser = cases.parser(__doc__)
    parser.add_argument("--filters", type=int, nargs=2, default=(1024, 8192))
    parser.add_argument("--max-iter", type=int, default=20, help="EM iterations, the same for every number of samples")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    few, many = arguments.filters
    scores = cases.trained_scores(cases.DEFAULT_BATCH, many)
    fit(scores[:8])
    results = {
        f"filters {few} → {many}": growth(lambda: fit(scores[:few]), lambda: fit(scores), arguments.rounds),
        **samples(arguments),
        **threads(scores[: 2 * few], 3 * arguments.rounds),
    }
    for name, (ratio, lowest, highest) in results.items():
        print(f"{name:40s} × {ratio:.2f}  ({lowest:.2f} to {highest:.2f})")
    ns_per_cell = dimensions(2 * arguments.rounds)
    for d, ns in ns_per_cell.items():
        print(
            f"d = {d}: {ns:.2f} ns a sample, component and iteration of EM, {flops_per_cell(d) / ns:.0f} Gflop/s a core"
        )
    content = {"ratios": results, "ns_per_cell": ns_per_cell}
    timing.write_json(arguments.json, {"title": "bench_scaling", **content})


Ratio = tuple[float, float, float]
"""Median, lowest and highest."""


def growth(small: Callable[[], object], large: Callable[[], object], rounds: int) -> Ratio:
    """Time of the large work over that of the small."""
    ratios = [timing.seconds(large) / timing.seconds(small) for _ in range(rounds)]
    return statistics.median(ratios), min(ratios), max(ratios)


def samples(arguments: argparse.Namespace) -> dict[str, Ratio]:
    """Growth of the time with N, for the same number of EM iterations."""
    results = {}
    for few, many, n_filters in SAMPLES:
        scores = cases.trained_scores(min(many, cases.LARGE_BATCH), n_filters)
        scores = np.take(scores, np.arange(many) % scores.shape[1], axis=1)
        start = np.ascontiguousarray(scores[:, :few])
        small, large = (lambda x=x: fit(x, tol=0, max_iter=arguments.max_iter) for x in (start, scores))
        results[f"samples {few} → {many}"] = growth(small, large, arguments.rounds)
    return results


def threads(scores: NDArray, rounds: int) -> dict[str, Ratio]:
    """How much faster all cores are than one, by threads and by processes."""
    cores = available_cores()
    parts = np.array_split(scores, cores)
    with cases.pool() as pool:
        by_process = lambda: pool(delayed(fit_alone)(part) for part in parts)  # noqa: E731
        by_process()
        return {
            f"speed, {cores} threads": growth(lambda: fit(scores), lambda: fit_alone(scores), rounds),
            f"ceiling: {cores} independent processes": growth(by_process, lambda: fit_alone(scores), rounds),
        }


def fit_alone(scores: NDArray) -> None:
    """Sweep on one thread."""
    fit(scores, threads=1)


def dimensions(rounds: int) -> dict[int, float]:
    """Nanoseconds of one core that an EM iteration takes for a sample and component, by d."""
    reduced = pca(cases.trained_maps(cases.LARGE_BATCH)[-1][:32], MAX_DIMS).scores
    few, many = EM_ITERATIONS
    cells = reduced.shape[0] * reduced.shape[1] * sum(range(cases.K_MIN, cases.K_MAX + 1)) * (many - few)
    result = {}
    for d in range(1, MAX_DIMS + 1):
        scores = np.ascontiguousarray(reduced[..., :d])
        fit(scores[:1])
        short, long = (
            timing.best(lambda n=n, x=scores: fit(x, threads=1, tol=0, max_iter=n), rounds) for n in (few, many)
        )
        result[d] = (long - short) / cells * 1e9
    return result


def flops_per_cell(d: int) -> int:
    """Of a sample and component in an iteration of EM; for d = 2 :data:`benchmarks.bench_sweep.FLOPS_PER_CELL`."""
    triangle = d * (d + 1)  # multiply-adds of A x, and of u uᵀ; a multiply-add counts 2
    return 2 * triangle + 4 * d + 15


if __name__ == "__main__":
    main()
