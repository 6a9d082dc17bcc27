"""What extraction and fitting cost for a network of a given size, each measured in a process of its own.

A cell is a network and a probe set. The network is plain: ``depth`` convolutions of 3 × 3, each of ``width`` filters
with ReLU and without pooling, so that all maps have the size of the images, which are real ones, resized. Its weights
are drawn (He, Zhang, Ren, Sun, *Delving Deep into Rectifiers*, 2015), not trained: training thousands of filters would
take longer than everything measured here. EM needs more iterations on some data than on others, so a trained network
may be faster or slower by some factor; ``iterations`` in the table says how many there were.

Extraction is the network's forward pass, and writing the maps; fitting is reading them, PCA, the mixture sweep, and
writing the fits. Every process is forked from one that has imported all and computed nothing, and warms up on a few
tiny filters. Memory is the largest resident set from then on, above what it was by then: what the work needs besides
program and libraries, the images and the network's weights. Only host memory is counted.
"""

import resource
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gmmcnn import config
from gmmcnn.errors import EngineError
from gmmcnn.featuremaps.store import ActivationStore
from gmmcnn.featuremaps.stream import extract
from gmmcnn.filters.fits import Fits
from gmmcnn.filters.fitting import fit_store

MEMORY_FLOOR_BYTES = 2**20
"""Growth of the resident set below this is the allocator's: nothing smaller is reported."""


@dataclass(frozen=True)
class Cell:
    """A network and its probe set."""

    width: int
    """Filters of each layer."""
    depth: int
    """Layers."""
    side: int
    """Height and width of the images and of all maps, in pixels."""
    samples: int
    """N, samples in a probe batch."""
    batches: int

    @property
    def filters(self) -> int:
        """Filters of the network."""
        return self.width * self.depth

    @property
    def pixels(self) -> int:
        """P, pixels of a map."""
        return self.side**2

    @property
    def images(self) -> int:
        """Images in the probe set."""
        return self.samples * self.batches


def build(cell: Cell, in_channels: int, seed: int) -> nn.Sequential:
    """Network of a cell, its weights drawn by seed; torch's random state is left as it was."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for number in range(1, cell.depth + 1):
            convolution = nn.Conv2d(in_channels if number == 1 else cell.width, cell.width, 3, padding=1)
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            layers |= {f"conv{number}": convolution, f"relu{number}": nn.ReLU()}
    return nn.Sequential(layers)


class Isolated:
    """Processes for one call each, forked from one that has imported this module and done nothing."""

    def __enter__(self) -> "Isolated":
        context = get_context("forkserver")
        context.set_forkserver_preload(["__main__", __name__])
        self._pool = ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1)
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __call__(self, function: Callable[..., dict[str, float]], *args: Any) -> dict[str, float]:
        """Call a function in a process of its own."""
        return self._pool.submit(function, *args).result()


def measure_cell(
    isolated: Isolated, cell: Cell, settings: config.Settings, images: NDArray[np.float32]
) -> dict[str, dict[str, float]]:
    """Extract a cell's maps and fit them, each in a process of its own.

    Parameters
    ----------
    isolated : Isolated
    cell : Cell
    settings : config.Settings
        Its ``extract`` (tap, dtype, ``forward_samples``), ``pca``, ``gmm``, ``engine`` and ``seed``.
    images : (N, C, H, W) float32
        The first of them are the probe set.

    Returns
    -------
    dict
        Of ``extract``: ``seconds``, ``peak_bytes``, and the ``forward_seconds`` that the network alone takes. Of
        ``fit``: ``seconds``, ``peak_bytes``, the ``live_share`` of the fits and the mean EM ``iterations`` of their
        best starts.

    Raises
    ------
    EngineError
        A process was killed, as the system does where memory runs out.
    """
    with tempfile.TemporaryDirectory(prefix="gmmcnn-") as scratch:
        try:
            return {
                "extract": isolated(_extract, cell, settings, images[: cell.images], Path(scratch)),
                "fit": isolated(_fit, cell, settings, Path(scratch)),
            }
        except BrokenProcessPool as error:
            raise EngineError(
                f"{cell}: the process was killed, most likely for want of memory; the cells finished before are kept"
            ) from error


def _extract(cell: Cell, settings: config.Settings, images: NDArray[np.float32], folder: Path) -> dict[str, float]:
    """Costs of an extraction, in this process."""
    size = (cell.side, cell.side)
    pixels = nn.functional.interpolate(torch.from_numpy(images), size, mode="bilinear", antialias=True)
    network = build(cell, pixels.shape[1], settings.seed).eval()
    _warm_up(settings, fit=False)
    costs = costs_of(lambda: _store(network, pixels, folder / "maps.zarr", cell.samples, settings))
    start = time.perf_counter()
    with torch.no_grad():
        for batch in pixels.split(min(cell.samples, settings.extract.forward_samples)):
            network(batch)
    return costs | {"forward_seconds": time.perf_counter() - start}


def _fit(cell: Cell, settings: config.Settings, folder: Path) -> dict[str, float]:
    """Costs of fitting what :func:`_extract` left in the folder, in this process."""
    _warm_up(settings, fit=True)
    store, done = ActivationStore.open(folder / "maps.zarr"), list[Fits]()
    costs = costs_of(lambda: done.append(fit_store(store, folder / "fits", n_samples=cell.samples, settings=settings)))
    layers = done[0].layers.values()
    iterations = np.concatenate([layer.n_iter[layer.live].ravel() for layer in layers])
    live = np.concatenate([layer.live.ravel() for layer in layers])
    return costs | {"live_share": float(live.mean()), "iterations": float(iterations.mean()) if live.any() else 0.0}


def _warm_up(settings: config.Settings, *, fit: bool) -> None:
    """Extract, and fit, a few tiny filters, so that all that is loaded or compiled on first use is."""
    samples = 4 * settings.gmm.k_max
    images = torch.rand(samples, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory(prefix="gmmcnn-") as scratch:
        network = build(Cell(2, 1, 4, samples, 1), 1, seed=0).eval()
        store = _store(network, images, Path(scratch) / "maps.zarr", samples, settings)
        if fit:
            fit_store(store, Path(scratch) / "fits", n_samples=samples, settings=settings)


def _store(
    network: nn.Module, pixels: Tensor, path: Path, n_samples: int, settings: config.Settings
) -> ActivationStore:
    chosen = settings.extract
    return extract(
        network, pixels, path, tap=chosen.tap, dtype=chosen.dtype, forward_samples=chosen.forward_samples,
        probe_samples=n_samples,
    )  # fmt: skip


def costs_of(work: Callable[[], object]) -> dict[str, float]:
    """Time of a piece of work, and by how much it raises the resident set of this process at most."""
    with suppress(OSError):  # Linux forgets its peak so far; elsewhere the warm-up's stands, which is hardly higher
        Path("/proc/self/clear_refs").write_text("5")
    before = _peak_bytes()
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_bytes": max(_peak_bytes() - before, MEMORY_FLOOR_BYTES)}


def _peak_bytes() -> int:
    """Largest resident set of this process so far.

    On Linux not ``ru_maxrss``, which starts with that of whoever started the process and cannot be made to forget it.
    """
    with suppress(FileNotFoundError):
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
