"""Principal components of feature maps: ours beside scikit-learn's default ``PCA(2)`` over a pool of the same cores.

    python -m benchmarks.bench_pca [--json FILE] [--only PIXELS]

Maps of a trained LeNet-5, of 784 and 100 pixels, and the former enlarged to 224 × 224. Workers find the maps in shared
memory. The largest error of the scores against float64 is printed, relative to their scale.

Then, how close to the limit: PCA reads a filter's maps once to sketch them and once for every pass of its iteration.
The same reading, as often, on the same threads, without any arithmetic but a sum, is timed beside it, and so are the
processor's fused multiply-adds.
"""

import argparse
import warnings
from collections.abc import Iterator
from unittest import mock

import numpy as np
import torch
from joblib import Parallel, delayed
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from benchmarks import cases, peaks, rivals, timing
from gmmcnn import pca_cpu
from gmmcnn.mixture.vectors import aligned_empty
from gmmcnn.principal_components import pca
from gmmcnn.threads import available_cores

LARGE_SIDE = 224
FLOPS_PER_NUMBER = 4 * pca_cpu.block_size(cases.DIMS)
"""Of a pass, for each number of the maps: a multiply-add each way for every direction."""


def main() -> None:
    parser = cases.parser(__doc__)
    parser.add_argument("--only", type=int, metavar="PIXELS", help="only maps of so many pixels")
    parser.add_argument("--filters", type=int, default=64, help="at most")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    peak = peaks.multiply_add()
    with cases.pool() as pool:
        for maps in problems(arguments):
            compare(maps, pool, arguments)
            report_limits(maps, peak, arguments)


def problems(arguments: argparse.Namespace) -> Iterator[NDArray[np.float32]]:
    """Maps (F, N, P) of every size."""
    store = cases.trained_store()
    for n_samples in (cases.LARGE_BATCH, cases.DEFAULT_BATCH):
        for maps in cases.trained_maps(n_samples, store):
            if arguments.only in (None, maps.shape[2]):
                yield np.ascontiguousarray(maps[: arguments.filters])
    if arguments.only in (None, LARGE_SIDE**2):
        yield enlarged(cases.trained_maps(cases.DEFAULT_BATCH, store)[0][: max(1, arguments.filters // 8)])


def enlarged(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Square maps as they would be of an image of 224 × 224 pixels."""
    side = round(maps.shape[2] ** 0.5)
    images = torch.from_numpy(maps).reshape(*maps.shape[:2], side, side)
    larger = torch.nn.functional.interpolate(images, size=(LARGE_SIDE, LARGE_SIDE), mode="bilinear")
    return larger.reshape(*maps.shape[:2], -1).numpy()


def compare(maps: NDArray[np.float32], pool: Parallel, arguments: argparse.Namespace) -> None:
    """Time ourselves and scikit-learn."""
    ours = timing.Contestant(lambda: pca(maps, engine="cpu"))
    theirs = timing.Contestant(lambda: pool(delayed(rivals.sklearn_pca)(maps, f, cases.DIMS) for f in range(len(maps))))
    comparisons = timing.compare(ours, {"scikit-learn": theirs}, arguments.rounds)
    sizes = {"filters": len(maps), "N": maps.shape[1], "P": maps.shape[2], "d": cases.DIMS}
    checks = {"scikit-learn": f"our error {largest_error(maps[:8]):.0e}"}
    timing.report("bench_pca", comparisons, {**sizes, "threads": available_cores()}, arguments.json, checks)


def largest_error(maps: NDArray[np.float32]) -> float:
    """Of our scores, relative to the standard deviation of all scores of the filter."""
    errors = []
    for ours, x in zip(pca(maps, engine="cpu").scores, maps.astype(np.float64), strict=True):
        exact = PCA(cases.DIMS, svd_solver="full").fit_transform(x)
        errors.append(np.abs(ours - exact).max() / exact.std())
    return max(errors)


def report_limits(maps: NDArray[np.float32], peak: float, arguments: argparse.Namespace) -> None:
    """The rates of PCA beside those of reading alone and of multiply-adds alone."""
    threads = available_cores()
    readings = 1 + passes(maps)
    read_bytes = maps[0].nbytes * readings.sum()
    flops = FLOPS_PER_NUMBER * maps[0].size * (readings - 1).sum()
    pca_s = timing.best(lambda: pca(maps, engine="cpu"), 2 * arguments.rounds + 1)
    read_s = timing.best(lambda: peaks.read_filters(maps, readings, threads), 2 * arguments.rounds + 1)
    multiply_s = flops / (peak * threads)
    print(
        f"  {readings.mean():.1f} readings of {maps[0].nbytes / 1e6:.1f} MB a filter:"
        f" {read_bytes / pca_s / 1e9:.1f} GB/s, {read_s / pca_s:.0%} of {read_bytes / read_s / 1e9:.1f} by reading;"
        f" {flops / pca_s / 1e9:.0f} Gflop/s, {multiply_s / pca_s:.0%} of {peak * threads / 1e9:.0f}"
    )
    rates = {"readings": readings.mean(), "pca_s": pca_s, "read_s": read_s, "multiply_s": multiply_s}
    timing.write_json(arguments.json, {"title": "pca_limits", "N": maps.shape[1], "P": maps.shape[2], **rates})


def passes(maps: NDArray[np.float32]) -> NDArray[np.int64]:
    """Passes (F,) that each filter takes to converge."""
    return np.array([passes_of(x[None]) for x in maps])


def passes_of(maps: NDArray[np.float32]) -> int:
    """Passes over the maps (1, N, P) of one filter, counted by the room taken in the last of the scratch arrays."""
    scratch: list[NDArray] = []

    def marked(size: int, dtype: np.dtype) -> NDArray:
        scratch.append(aligned_empty(size, dtype))
        scratch[-1][:] = np.nan
        return scratch[-1]

    scores = np.empty((1, maps.shape[1], cases.DIMS), maps.dtype)
    with mock.patch.object(pca_cpu, "aligned_empty", marked):
        pca_cpu.krylov_pca(maps, cases.DIMS, scores, np.empty((1, cases.DIMS)), np.empty(1))
    scores_of_directions = scratch[-1].reshape(pca_cpu.MAX_PASSES, -1)
    return int((~np.isnan(scores_of_directions[:, 0])).sum())


if __name__ == "__main__":
    main()
