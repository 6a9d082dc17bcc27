"""From a store on disk to the screened table of filters: ours beside a scikit-learn loop over the same store.

    python -m benchmarks.bench_pipeline [--json FILE] [--only CASE]

Both read the maps of a trained LeNet-5 in probe batches of 200, reduce them by PCA, fit K = 2 … 10, choose K by the
index and apply the three criteria. The loop reads blocks of filters, ahead of a pool of processes that work on them,
for a share of the probe batches; its time is scaled. Cases:

same     one start each
default  our default number of starts, scikit-learn one
"""

import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from numpy.typing import NDArray

from benchmarks import cases, rivals, timing
from gmmcnn import config
from gmmcnn.featuremaps import ActivationStore, filter_blocks
from gmmcnn.filters.fitting import fit_store, n_fits
from gmmcnn.filters.screening import screen
from gmmcnn.hardware.threads import available_cores


def main() -> None:
    parser = cases.parser(__doc__)
    parser.add_argument("--only", choices=("same", "default"), help="one case")
    parser.add_argument("--one-in", type=int, default=5, help="scikit-learn does one probe batch in so many")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    store = cases.trained_store()
    n_batches = store.n_samples // cases.DEFAULT_BATCH
    theirs = max(1, n_batches // arguments.one_in)
    starts = {"same": 1, "best of ten": 10}
    with cases.pool() as pool:
        for case, n_init in starts.items():
            if arguments.only not in (None, case):
                continue
            settings = config.Settings(engine=config.Engine(name="cpu"), gmm=config.Gmm(n_init=n_init, repeats=1))
            ours = timing.Contestant(lambda settings=settings: analysed(store, settings))
            loop = timing.Contestant(
                lambda settings=settings: looped(store, theirs, settings, pool), theirs / n_batches
            )
            comparisons = timing.compare(ours, {"scikit-learn": loop}, arguments.rounds)
            sizes = {"fits": n_fits(store, cases.DEFAULT_BATCH), "N": cases.DEFAULT_BATCH, "our starts": n_init}
            checks = {"scikit-learn": f"{len(loop.answer)} and our {len(ours.answer)} filters"}
            timing.report(
                "bench_pipeline", comparisons, {**sizes, "threads": available_cores()}, arguments.json, checks
            )


def analysed(store: ActivationStore, settings: config.Settings) -> pd.DataFrame:
    """Our table of filters; the fits are kept on disk, as always."""
    folder = Path(tempfile.mkdtemp(dir=cases.cache_folder()))
    try:
        fits = fit_store(store, folder, n_samples=cases.DEFAULT_BATCH, settings=settings)
        return screen(fits, settings.screen).filters
    finally:
        shutil.rmtree(folder)


def looped(store: ActivationStore, n_batches: int, settings: config.Settings, pool: Parallel) -> pd.DataFrame:
    """The loop's table of filters, from the first probe batches."""
    fit = delayed(rivals.sklearn_filter)
    rows = pool(fit(maps, name, cases.K_MIN, cases.K_MAX, settings.screen) for name, maps in problems(store, n_batches))
    return rivals.screened(rows, settings.screen)


def problems(store: ActivationStore, n_batches: int) -> Iterator[tuple[dict[str, object], NDArray[np.float32]]]:
    """Every filter in every batch: its name and its maps (N, P), read when asked for."""
    for layer in store.layers:
        for filters, blocks in filter_blocks(store, layer, samples=slice(0, n_batches * cases.DEFAULT_BATCH)):
            for f, maps in zip(range(filters.start, filters.stop), blocks, strict=True):
                for batch, samples in enumerate(maps.reshape(n_batches, cases.DEFAULT_BATCH, -1)):
                    yield {"layer": layer, "filter": f, "batch": batch}, samples


if __name__ == "__main__":
    main()
