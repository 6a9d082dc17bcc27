"""Principal components of feature maps: ours beside scikit-learn's default ``PCA(2)`` over a pool of the same cores.

    python -m benchmarks.bench_pca [--json FILE] [--only PIXELS]

Maps of a trained LeNet-5, of 784 and 100 pixels, and the former enlarged to 224 × 224. Workers find the maps in shared
memory. The largest error of the scores against float64 is printed, relative to their scale.

Then, for maps that are not decomposed by their Gram matrix, how close to the limit: PCA reads a filter's maps once for
every pass of its iteration. These passes alone are timed beside the same reading, as often, on the same threads,
without any arithmetic but a sum, beside the processor's fused multiply-adds, and beside all of PCA: what remains is
sketching the maps and the algebra between passes.
"""

import argparse
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed
from numba import njit
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from benchmarks import cases, peaks, rivals, timing
from gmmcnn.hardware.threads import available_cores, for_blocks
from gmmcnn.principal_components import krylov
from gmmcnn.principal_components.pca import GRAM_PIXELS, pca

LARGE_SIDE = 224
LARGEST = 320 * 2**20
"""Bytes of maps."""
FLOPS_PER_NUMBER = 4 * krylov.block_size(cases.DIMS)
"""Of a pass, for each number of the maps: a multiply-add each way for every direction."""


def main() -> None:
    parser = cases.parser(__doc__)
    parser.add_argument("--only", type=int, metavar="PIXELS", help="only maps of so many pixels")
    parser.add_argument("--filters", type=int, default=512, help="at most")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    peak = peaks.multiply_add()
    with cases.pool() as pool:
        for maps in problems(arguments):
            compare(maps, pool, arguments)
            if maps.shape[2] > GRAM_PIXELS:
                report_limits(maps, peak, arguments)


def problems(arguments: argparse.Namespace) -> Iterator[NDArray[np.float32]]:
    """Maps (F, N, P) of every size."""
    store = cases.trained_store()
    for n_samples in (cases.LARGE_BATCH, cases.DEFAULT_BATCH):
        for maps in cases.trained_maps(n_samples, store):
            if arguments.only in (None, maps.shape[2]):
                yield np.ascontiguousarray(maps[: min(arguments.filters, LARGEST // maps[0].nbytes)])
    if arguments.only in (None, LARGE_SIDE**2):
        largest = LARGEST // (4 * cases.DEFAULT_BATCH * LARGE_SIDE**2)
        yield enlarged(cases.trained_maps(cases.DEFAULT_BATCH, store)[0][: min(arguments.filters, largest)])


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
    """The rate of the passes beside those of reading alone and of multiply-adds alone."""
    threads = available_cores()
    n_passes = passes(maps)
    read_bytes = maps[0].nbytes * n_passes.sum()
    flops = FLOPS_PER_NUMBER * maps[0].size * n_passes.sum()
    rounds = 2 * arguments.rounds + 1
    passes_s = timing.best(lambda: only_passes(maps, n_passes, threads), rounds)
    read_s = timing.best(lambda: peaks.read_filters(maps, n_passes, threads), rounds)
    pca_s = timing.best(lambda: pca(maps, engine="cpu"), rounds)
    multiply_s = flops / (peak * threads)
    done, could = read_bytes / passes_s / 1e9, read_bytes / read_s / 1e9
    print(
        f"  {n_passes.mean():.1f} passes over {maps[0].nbytes / 1e6:.1f} MB a filter, {passes_s / pca_s:.0%} of PCA:"
        f" {done:.1f} GB/s, {done / could:.0%} of {could:.1f} by reading;"
        f" {flops / passes_s / 1e9:.0f} Gflop/s, {multiply_s / passes_s:.0%} of {peak * threads / 1e9:.0f}"
    )
    rates = {
        "passes": n_passes.mean(),
        "passes_s": passes_s,
        "read_s": read_s,
        "multiply_s": multiply_s,
        "pca_s": pca_s,
    }
    timing.write_json(arguments.json, {"title": "pca_limits", "N": maps.shape[1], "P": maps.shape[2], **rates})


def only_passes(maps: NDArray[np.float32], n_passes: NDArray[np.int64], threads: int) -> None:
    """As many passes over the maps (F, N, P) of each filter as it takes, and nothing else."""

    def work(first: int, last: int) -> None:
        scratch = krylov.krylov_of(maps, cases.DIMS)
        for array in (scratch.basis, scratch.mean):
            array[:] = 0
        _passes(maps[first:last], n_passes[first:last], (0.0,) * krylov.GROUP, scratch)

    for_blocks(work, len(maps), threads)


@njit(nogil=True, error_model="numpy")
def _passes(maps: Any, n_passes: Any, group: Any, scratch: Any) -> None:
    _, n_samples, n_pixels = maps.shape
    for f in range(len(maps)):
        of_filter = krylov.Maps(maps[f].reshape(-1), n_samples, n_pixels, scratch.mean, group)
        for _ in range(n_passes[f]):
            krylov.centred_pass(of_filter, scratch, 0)


def passes(maps: NDArray[np.float32]) -> NDArray[np.int64]:
    """Passes (F,) that each filter takes to converge."""
    return np.array([passes_of(x[None]) for x in maps])


def passes_of(maps: NDArray[np.float32]) -> int:
    """Passes over the maps (1, N, P) of one filter, counted by how many wrote their scores."""
    scratch = krylov.krylov_of(maps, cases.DIMS)
    scratch.scores[:] = np.nan
    scores = np.empty((1, maps.shape[1], cases.DIMS), maps.dtype)
    group = (0.0,) * krylov.GROUP
    krylov.decompose(maps, scratch, group, scores, np.empty((1, cases.DIMS)), np.empty(1), np.empty(1, np.int64))
    return int((~np.isnan(scratch.scores.reshape(krylov.MAX_PASSES, -1)[:, 0])).sum())


if __name__ == "__main__":
    main()
