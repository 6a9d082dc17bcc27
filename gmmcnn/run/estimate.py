"""How long fitting takes on this machine: what a probe of a second or so shows one fit to take, times their number.

The work of a mixture is the cost model's, so that few problems stand for many; that of the principal components is
probed for each size of map.
"""

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gmmcnn.config import Settings
from gmmcnn.errors import ConvergenceWarning
from gmmcnn.hardware import cost_model as cost
from gmmcnn.mixture.sweep import GaussianMixtureSweep
from gmmcnn.principal_components.pca import pca

_MOST_ROUNDS = 1024


@dataclass(frozen=True)
class JobSize:
    """What is to be fitted."""

    layers: tuple[tuple[int, int], ...]
    """Filters of each layer, and pixels of their maps."""
    n_checkpoints: int
    n_batches: int
    """Probe batches."""

    @property
    def n_filters(self) -> int:
        """Filters over all layers."""
        return sum(filters for filters, _ in self.layers)

    @property
    def n_fits(self) -> int:
        """Fits of each filter, repeats not counted."""
        return self.n_batches * self.n_checkpoints


@dataclass(frozen=True)
class Seconds:
    """What one filter in one probe batch takes.

    Attributes
    ----------
    mixtures : float
        All its repeats, seconds.
    components : mapping
        Pixels of a map → seconds.
    """

    mixtures: float
    components: Mapping[int, float]

    def of(self, filters: int, pixels: int) -> float:
        """Seconds for a layer in one probe batch."""
        return filters * (self.mixtures + self.components[pixels])


def probe(settings: Settings, engine: str, job: JobSize) -> Seconds:
    """Fit a few problems on an engine, for a second or so; ``probe``, ``pca`` and ``gmm`` size them."""
    n_samples, dims, gmm = settings.probe.samples, settings.pca.dims, settings.gmm

    def work(filters: int) -> float:
        sweep = cost.Sweep(filters, n_samples, dims, gmm.k_min, gmm.k_max, gmm.n_init)
        return sum(stage.instructions for stage in cost.sweep_stages(sweep))

    few = np.random.default_rng(0).normal(size=(8, n_samples, dims)).astype(np.float32)
    sweep = GaussianMixtureSweep(engine=engine, **gmm.of_a_sweep)

    def fit(times: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            sweep.fit(np.tile(few, (times, 1, 1)))

    seconds, filters = _grow(fit, len(few))
    mixtures = seconds / work(filters) * work(job.n_filters) / job.n_filters * gmm.repeats

    def seconds_for_components(pixels: int) -> float:
        maps = natural_maps(2, n_samples, pixels)
        seconds, filters = _grow(lambda times: pca(np.tile(maps, (times, 1, 1)), dims, engine=engine), len(maps), 0.1)
        return seconds / filters

    return Seconds(mixtures, {pixels: seconds_for_components(pixels) for _, pixels in job.layers})


def sentence(settings: Settings, engine: str, job: JobSize) -> str:
    """What fitting a whole job takes, in one line."""
    seconds, gmm = probe(settings, engine, job), settings.gmm
    mixtures = job.n_fits * job.n_filters * seconds.mixtures
    components = job.n_fits * sum(filters * seconds.components[pixels] for filters, pixels in job.layers)
    return (
        f"{mixtures + components:.2g} s on the {engine} engine to fit {job.n_filters:,} filters in "
        f"{job.n_batches} batches of N = {settings.probe.samples} at {job.n_checkpoints} checkpoints, "
        f"K = {gmm.k_min} … {gmm.k_max}, n_init = {gmm.n_init}, repeats = {gmm.repeats}: mixtures {mixtures:.2g} s, "
        f"principal components {components:.2g} s"
    )


def natural_maps(n_filters: int, n_samples: int, n_pixels: int) -> NDArray[np.float32]:
    """Maps (F, N, P) whose principal components fall off as those of real ones do."""
    rng = np.random.default_rng(0)
    patterns = np.exp(-np.arange(10) / 3)[:, None] * rng.normal(size=(10, n_pixels))
    return np.maximum(rng.normal(size=(n_filters, n_samples, 10)) @ patterns, 0).astype(np.float32)


def _grow(work: Callable[[int], object], size: int, enough_s: float = 0.5) -> tuple[float, int]:
    """Run ``work(n)`` with n doubling until it takes ``enough_s``; seconds and ``n * size`` of the last run."""
    n = 1
    work(n)  # compiles
    while True:
        start = time.perf_counter()
        work(n)
        seconds = time.perf_counter() - start
        if seconds > enough_s or n >= _MOST_ROUNDS:
            return seconds, n * size
        n *= 2
