"""How the sweep's time grows with filters, samples and threads.

python -m benchmarks.bench_scaling [--json FILE]
"""

import warnings

from benchmarks import cases, timing
from benchmarks.bench_sweep import fit


def main() -> None:
    parser = cases.parser(__doc__)
    parser.add_argument("--filters", type=int, nargs=2, default=(1024, 8192))
    parser.add_argument("--max-iter", type=int, default=20, help="EM iterations, the same for every problem")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    few, many = arguments.filters
    scores = cases.trained_scores(cases.DEFAULT_BATCH, many)
    large = cases.trained_scores(4 * cases.DEFAULT_BATCH, few // 8)
    same_work = {"tol": 0, "max_iter": arguments.max_iter}
    results = {}
    fit(scores[:8])
    for name, small_work, large_work, expected in [
        (f"filters {few} → {many}", lambda: fit(scores[:few]), lambda: fit(scores), many / few),
        (
            "samples 200 → 800",
            lambda: fit(large[:, :200].copy(), **same_work),
            lambda: fit(large, **same_work),
            4.0,
        ),
        ("threads 2 → 1", lambda: fit(scores[:few], threads=2), lambda: fit(scores[:few], threads=1), 2.0),
    ]:
        ratios = [timing.seconds(large_work) / timing.seconds(small_work) for _ in range(arguments.rounds)]
        ratio = sorted(ratios)[len(ratios) // 2]
        results[name] = ratio
        print(f"{name:28s} time × {ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f}), ideal {expected:.2f}")
    timing.write_json(arguments.json, {"title": "bench_scaling", "results": results})


if __name__ == "__main__":
    main()
