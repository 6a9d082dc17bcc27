"""From a store on disk to fits: ours beside a scikit-learn loop over the same store.

    python -m benchmarks.bench_pipeline [--json FILE]

The rival reads the same filters from the same store, and does PCA, K = 2 … 10 and the index for every probe batch of
a share of them.
"""

import os
import shutil
import tempfile
import warnings
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed

from benchmarks import cases, rivals, timing
from gmmcnn import config
from gmmcnn.fitting import fit_store


def main() -> None:
    parser = cases.parser(__doc__)
    parser.add_argument("--sklearn-share", type=float, default=0.1)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    threads = len(os.sched_getaffinity(0))
    store = cases.trained_store()
    folder = Path(tempfile.mkdtemp())
    n = cases.DEFAULT_BATCH
    n_filters = sum(store.tap(layer).shape[0] for layer in store.layers)

    def ours() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        fit_store(store, folder, batch_samples=n, settings=config.Settings(engine=config.Engine(name="cpu")))

    with Parallel(n_jobs=threads) as pool:

        def theirs() -> None:
            for layer in store.layers:
                kept = max(1, round(store.tap(layer).shape[0] * arguments.sklearn_share))
                maps = store.read(layer, slice(0, kept)).reshape(kept, store.n_samples, -1)
                pool(delayed(reduce_and_sweep)(x) for x in maps.reshape(-1, n, maps.shape[2]))

        done = sum(max(1, round(store.tap(layer).shape[0] * arguments.sklearn_share)) for layer in store.layers)
        rivals_ = {"scikit-learn + joblib": (theirs, done / n_filters)}
        comparisons = timing.compare(ours, rivals_, arguments.rounds)
    sizes = {"filters": n_filters, "batches": store.n_samples // n, "N": n, "threads": threads}
    timing.report("bench_pipeline", comparisons, sizes, arguments.json)
    shutil.rmtree(folder, ignore_errors=True)


def reduce_and_sweep(maps: np.ndarray) -> int:
    if maps.std() == 0:
        return 0
    return rivals.sklearn_sweep(rivals.sklearn_pca(maps, 2), cases.K_MIN, cases.K_MAX)


if __name__ == "__main__":
    main()
