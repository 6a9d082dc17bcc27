"""From a network to the screened table of filters, no map stored: ours beside scikit-learn on maps that lie in memory.

    python -m benchmarks.bench_live [--json FILE] [--only CASE]

The forward pass is run once more beside every contestant that contains it, and its time taken off, so that a ratio
says what is done with the maps. scikit-learn and joblib get the maps as arrays, for a share of the fits, and their time
is scaled; one start each. Beside them stand two ways of our own: PCA and mixtures alone, of maps that lie in memory,
and the way through a store. Cases:

lenet5   22 filters on Fashion-MNIST, 70 probe batches of N = 200
alexnet  the filters of an AlexNet's first layers on Fashion-MNIST, 10 probe batches of N = 200
"""

import shutil
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from torch import Tensor, nn

from benchmarks import cases, networks, rivals, timing
from gmmcnn import config
from gmmcnn.featuremaps import extract, find_taps
from gmmcnn.featuremaps.live import LiveMaps
from gmmcnn.featuremaps.memory import MapsInMemory
from gmmcnn.featuremaps.stream import block_samples, feature_maps
from gmmcnn.featuremaps.taps import Taps
from gmmcnn.filters.fits import Fits
from gmmcnn.filters.fitting import fit_store, n_fits
from gmmcnn.filters.live import fit_live
from gmmcnn.filters.screening import screen
from gmmcnn.hardware.threads import available_cores
from gmmcnn.mixture.sweep import GaussianMixtureSweep
from gmmcnn.principal_components.pca import pca

CASES = ("lenet5", "alexnet")
N = cases.DEFAULT_BATCH
SETTINGS = config.Settings(engine=config.Engine(name="cpu"), gmm=config.Gmm(repeats=1))


def main() -> None:
    parser = cases.parser(__doc__)
    parser.add_argument("--only", choices=CASES, help="one case")
    parser.add_argument("--one-in", type=int, default=16, help="scikit-learn does one fit in so many")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    with cases.pool() as pool:
        for case in CASES:
            if arguments.only in (None, case):
                model, images = network(case)
                measure(case, model, images, pool, arguments)


def network(case: str) -> tuple[nn.Module, Tensor]:
    """A trained network in eval mode and its images."""
    if case == "lenet5":
        model, images, _ = cases.trained_network()
    else:
        model, images, _ = networks.Network("alexnet", "fashion_mnist", seed=0, epochs=2).trained()
        images = images[: 10 * N]
    return model.eval(), images


def measure(case: str, model: nn.Module, images: Tensor, pool: Parallel, arguments) -> None:
    """Time ourselves and the others on the maps of one network."""
    taps = find_taps(model, images[:1])
    maps = feature_maps(model, images, taps, probe_samples=N)
    n_problems = n_fits(maps, N)
    forward = partial(run, model, images, taps)
    ours = timing.Contestant(partial(live, model, images, taps), apart=forward)
    theirs = len(range(0, n_problems, arguments.one_in))
    others = {
        "scikit-learn": timing.Contestant(partial(looped, maps, arguments.one_in, pool), theirs / n_problems),
        "PCA and mixtures": timing.Contestant(partial(computed, maps)),
        "by way of a store": timing.Contestant(partial(stored, model, images, taps), apart=forward),
    }
    comparisons = timing.compare(ours, others, arguments.rounds)
    start = time.perf_counter()
    forward()
    sizes = {
        "fits": n_problems,
        "N": N,
        "P": "/".join(str(tap.height * tap.width) for tap in taps.analysed),
        "MiB of maps": round(sum(array.nbytes for array in maps.by_layer.values()) / 2**20),
        "forward pass": f"{time.perf_counter() - start:.3f} s",
        "threads": available_cores(),
    }
    checks = {
        "scikit-learn": compared(others["scikit-learn"].answer, ours.answer),
        "by way of a store": "the same table" if ours.answer.equals(others["by way of a store"].answer) else "OTHERS",
    }
    timing.report(f"bench_live {case}", comparisons, sizes, arguments.json, checks)


def compared(theirs: pd.DataFrame, ours: pd.DataFrame) -> str:
    """How the tables compare, and in how many filters most of scikit-learn's fits failed."""
    failed = (theirs["status"] == rivals.FAILED).sum()
    return f"{len(theirs)} and our {len(ours)} filters" + (f", {failed} failed" if failed else "")


def run(model: nn.Module, images: Tensor, taps: Taps) -> None:
    """The forward pass alone, in the batches in which maps are taken."""
    with torch.no_grad():
        for batch in images.split(block_samples(taps, N, len(images), SETTINGS.extract.forward_samples)):
            model(batch)


def live(model: nn.Module, images: Tensor, taps: Taps) -> pd.DataFrame:
    """Our table of filters, from the network."""
    return table(fit_live(LiveMaps(model, images, taps, N, SETTINGS.extract), None, n_samples=N, settings=SETTINGS))


def stored(model: nn.Module, images: Tensor, taps: Taps) -> pd.DataFrame:
    """Our table of filters, from the network by way of a store."""
    folder = Path(tempfile.mkdtemp(dir=cases.cache_folder()))
    try:
        store = extract(model, images, folder / "maps", probe_samples=N, taps=taps)
        return table(fit_store(store, folder / "fits", n_samples=N, settings=SETTINGS))
    finally:
        shutil.rmtree(folder)


def table(fits: Fits) -> pd.DataFrame:
    return screen(fits, SETTINGS.screen).filters


def computed(maps: MapsInMemory) -> None:
    """PCA and mixtures of all maps, and nothing else."""
    scores = [
        pca(array.reshape(-1, N, array.shape[2]), cases.DIMS, engine="cpu").scores for array in maps.by_layer.values()
    ]
    GaussianMixtureSweep(k_min=cases.K_MIN, k_max=cases.K_MAX, engine="cpu").fit(np.concatenate(scores))


def looped(maps: MapsInMemory, one_in: int, pool: Parallel) -> pd.DataFrame:
    """scikit-learn's table of filters, from some of the fits."""
    fit = delayed(rivals.sklearn_filter)
    problems = [
        ({"layer": layer, "filter": f, "batch": batch}, samples)
        for layer, of_layer in maps.by_layer.items()
        for f, of_filter in enumerate(of_layer)
        for batch, samples in enumerate(of_filter.reshape(-1, N, of_filter.shape[1]))
    ]
    rows = pool(fit(samples, name, cases.K_MIN, cases.K_MAX, SETTINGS.screen) for name, samples in problems[::one_in])
    return rivals.screened(rows, SETTINGS.screen)


if __name__ == "__main__":
    main()
