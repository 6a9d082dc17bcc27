"""What it costs to score the samples of a run from its stored fits: to read them, and to score.

    python -m benchmarks.bench_samples [--json FILE] [--filters 1000] [--batches 10] [--samples 200] [--repeats 10]

The fits are of random mixtures, in the files and by the reader of a run folder; what a score costs does not depend on
what the clusters are. Both times are told, wall clock on the cores that this process may use and processor time, which
other work on the machine does not lengthen; the shortest of the rounds.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks import cases, timing
from gmmcnn import config
from gmmcnn.constants import Status
from gmmcnn.filters import fitting
from gmmcnn.filters.fits import Fits, LayerFits
from gmmcnn.filters.samples import score_samples
from gmmcnn.hardware.threads import available_cores

CLASSES = 10
FILTERS_A_FILE = 128


def main() -> None:
    parser = cases.parser(__doc__)
    for name, default in (("filters", 1000), ("batches", 10), ("samples", 200), ("repeats", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    sizes = {name: getattr(arguments, name) for name in ("filters", "batches", "samples", "repeats")}
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), **sizes, rounds=arguments.rounds)
    of = ", ".join(f"{number} {name}" for name, number in sizes.items())
    print(f"{of}, {available_cores()} cores")
    for work, times in found.items():
        print(f"  {work:5s} {times['wall']:6.2f} s by the clock, {times['processor']:6.2f} s of a processor")
    timing.write_json(arguments.json, {"title": "bench_samples", "sizes": sizes, "results": found})


def measure(
    folder: Path, *, filters: int, batches: int, samples: int, repeats: int, rounds: int
) -> dict[str, dict[str, float]]:
    """Seconds to read the fits of a layer from a folder, and to score their samples, after both were done once."""
    files = []
    for first in range(0, filters, FILTERS_A_FILE):
        files.append(folder / "batch-0000" / f"filter-{first:06d}.npz")
        random_fits(min(FILTERS_A_FILE, filters - first), batches, samples, repeats, seed=first).save(files[-1])
    labels = pd.Series(np.random.default_rng(0).integers(0, CLASSES, batches * samples))
    settings = config.Settings()

    def read() -> Fits:
        return fitting.read_fits({"conv": files}, settings)

    fits = read()

    def score() -> pd.DataFrame:
        return score_samples(fits, labels, settings.screen.min_active_share)

    score()
    return {"read": _times(read, rounds), "score": _times(score, rounds)}


def _times(work: Callable[[], object], rounds: int) -> dict[str, float]:
    processor = []

    def timed() -> None:
        start = time.process_time()
        work()
        processor.append(time.process_time() - start)

    return {"wall": timing.best(timed, rounds), "processor": min(processor)}


def random_fits(n_filters: int, n_batches: int, n_samples: int, n_repeats: int, *, seed: int) -> LayerFits:
    """Mixtures of 2 … K_MAX components, of equal weight and unit variance, and samples drawn from one of them."""
    rng = np.random.default_rng(seed)
    maps, mixtures = (n_filters, n_batches), (n_filters, n_batches, n_repeats)
    chosen = rng.integers(cases.K_MIN, cases.K_MAX + 1, mixtures)
    used = np.arange(cases.K_MAX) < chosen[..., None]
    by_k = (*mixtures, cases.K_MAX - cases.K_MIN + 1)
    return LayerFits(
        scores=rng.normal(size=(*maps, n_samples, cases.DIMS)).astype(np.float32),
        explained_variance=np.ones((*maps, cases.DIMS)),
        mean_activation=np.ones(maps),
        active_share=np.ones(maps),
        status=np.full(mixtures, str(Status.OK)),
        n_components=chosen,
        labels=(rng.integers(0, 2**15, (*mixtures, n_samples)) % chosen[..., None]).astype(np.int16),
        calinski_harabasz=np.ones(by_k),
        lower_bound=np.ones(by_k),
        n_iter=np.ones(by_k, np.int64),
        converged=np.ones(by_k, bool),
        weights=np.where(used, 1 / chosen[..., None], np.nan),
        means=np.where(used[..., None], rng.normal(size=(*mixtures, cases.K_MAX, cases.DIMS)), np.nan),
        covariances=np.where(used[..., None, None], np.eye(cases.DIMS), np.nan),
    )


if __name__ == "__main__":
    main()
