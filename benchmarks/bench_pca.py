"""Principal components of feature maps: ours beside scikit-learn's default ``PCA(2)`` over a pool of the same cores.

    python -m benchmarks.bench_pca [--json FILE]

Maps of a trained LeNet-5: 784 and 100 pixels, N = 1000 and N = 200. The largest error of the scores against float64
is printed, relative to their scale.
"""

import argparse
import os

import numpy as np
from joblib import Parallel, delayed
from sklearn.decomposition import PCA

from benchmarks import cases, rivals, timing
from gmmcnn.principal_components import pca


def main() -> None:
    arguments = cases.parser(__doc__).parse_args()
    threads = len(os.sched_getaffinity(0))
    store = cases.trained_store()
    for n_samples in (cases.LARGE_BATCH, cases.DEFAULT_BATCH):
        for maps in cases.trained_maps(n_samples, store):
            measure(np.ascontiguousarray(maps[:64]), threads, arguments)


def measure(maps: np.ndarray, threads: int, arguments: argparse.Namespace) -> None:
    with Parallel(n_jobs=threads) as pool:
        theirs = {"scikit-learn + joblib": (lambda: pool(delayed(rivals.sklearn_pca)(x, 2) for x in maps), 1.0)}
        comparisons = timing.compare(lambda: pca(maps, engine="cpu"), theirs, arguments.rounds)
    sizes = {"filters": len(maps), "N": maps.shape[1], "P": maps.shape[2], "d": 2, "threads": threads}
    timing.report("bench_pca", comparisons, {**sizes, "error": f"{largest_error(maps[:8]):.1e}"}, arguments.json)


def largest_error(maps: np.ndarray) -> float:
    errors = []
    for ours, x in zip(pca(maps, engine="cpu").scores, maps.astype(np.float64), strict=True):
        exact = PCA(2, svd_solver="full").fit_transform(x)
        errors.append(np.abs(ours - exact).max() / exact.std())
    return max(errors)


if __name__ == "__main__":
    main()
