"""What a sweep and a PCA cost on a GPU, from sizes alone: instructions, bytes, launches, and the least time they take.

Instructions are counted for a sample and a component in the innermost loops of ``kernels/gmm_em.cu`` as the assembler
emits them for sm_90 (d = 2: 18 in the E-step, 27 in the M-step, 35 in a round of Lloyd's iteration); for other d the
counts grow as the arithmetic does. A floor assumes that every scheduler issues an instruction every cycle, which no
kernel does, and counts nothing beyond the inner loops; but it counts lanes that have no sample left, launches, and what
the host's cores do: :func:`way` puts together what maps cost from where they lie to their fits.
"""

import math
from dataclasses import dataclass, replace

from gmmcnn.config import Gmm, Pca

REGISTERS_PER_MULTIPROCESSOR = 65536
SINGLE_PRECISION_SHARE = 0.75
"""Of the counted instructions; the others use other units."""
WARP = 32
LAUNCH_SECONDS = 5e-6
"""Of the host's thread for one launch: many small blocks are bound by it."""
DECODE_BYTES_PER_SECOND = 0.35e9
"""Maps out of a store of LZ4, by one core, checks included (``benchmarks.bench_codec``)."""
STAGING_BYTES_PER_SECOND = 8e9
"""Into page-locked memory, by one core: whoever copies does not share this work."""
STORE_BLOCK_BYTES = 64 * 2**20
"""Maps that are read from a store, and reduced, at once."""


@dataclass(frozen=True)
class Device:
    """A GPU, by its data sheet."""

    name: str
    multiprocessors: int
    clock_hz: float
    bytes_per_second: float
    """Of device memory."""
    shared_bytes: int
    """Shared memory of a multiprocessor."""
    lanes: int = 128
    """Single-precision units of a multiprocessor."""
    max_threads: int = 2048
    """Resident threads of a multiprocessor."""
    link_bytes_per_second: float = 25e9
    """From the host's memory."""

    @property
    def instructions_per_second(self) -> float:
        """Of single threads: four warps a cycle on every multiprocessor, or what its single-precision units allow."""
        return self.multiprocessors * min(4 * WARP, self.lanes / SINGLE_PRECISION_SHARE) * self.clock_hz


DEVICES = (
    Device("H100 SXM", 132, 1.755e9, 3.35e12, 228 * 1024, link_bytes_per_second=50e9),
    Device("A100 SXM 80 GB", 108, 1.41e9, 2.04e12, 164 * 1024, lanes=64),
    Device("T4", 40, 1.59e9, 0.32e12, 64 * 1024, lanes=64, max_threads=1024, link_bytes_per_second=12e9),
)
"""By their data sheets; clocks are boost clocks."""


@dataclass(frozen=True)
class Sweep:
    """Sizes of a mixture sweep; iterations as on real scores or more (LeNet-5, N = 1000: 15 of EM, 14 of Lloyd)."""

    n_filters: int
    n_samples: int
    n_dims: int = Pca.dims
    k_min: int = Gmm.k_min
    k_max: int = Gmm.k_max
    n_init: int = Gmm.n_init
    em_iterations: float = 25
    lloyd_rounds: float = 15
    threads: int = 64
    """Of a block: in its last pass over the samples some have none."""

    @property
    def pairs(self) -> int:
        """(Sample, component) pairs of one iteration over all filters, K and starts."""
        components = sum(range(self.k_min, self.k_max + 1))
        return self.n_filters * self.n_samples * components * self.n_init

    @property
    def busy_lanes(self) -> float:
        """Share of the threads' turns that have a sample."""
        return self.n_samples / (math.ceil(self.n_samples / self.threads) * self.threads)


@dataclass(frozen=True)
class Stage:
    """One part of the work on a device."""

    name: str
    launches: int
    instructions: float = 0
    """Of single threads."""
    memory_bytes: float = 0
    link_bytes: float = 0
    host_seconds: float = 0
    """Work of the host's cores, beside which the device may work."""

    def floor_seconds(self, device: Device) -> float:
        """Time below which the device cannot do it."""
        return max(
            self.instructions / device.instructions_per_second,
            self.memory_bytes / device.bytes_per_second,
            self.link_bytes / device.link_bytes_per_second,
            self.host_seconds,
            self.launches * LAUNCH_SECONDS,
        )


def em_instructions(n_dims: int) -> tuple[int, int]:
    """Instructions of the E-step and of the M-step, for a sample and a component."""
    whiten = 2 * n_dims + n_dims * (n_dims - 1) // 2 + n_dims
    sums = 1 + 2 * n_dims + n_dims * (n_dims + 1) // 2
    return whiten + 11, whiten + sums + 12


def lloyd_instructions(n_dims: int) -> int:
    """Instructions of a round of Lloyd's iteration, for a sample and a component."""
    return 2 * (2 * n_dims + n_dims * (n_dims - 1) // 2 + n_dims) + 21


def sweep_stages(sweep: Sweep, itemsize: int = 4) -> list[Stage]:
    """Stages of :func:`gmmcnn.mixture.cuda.fit_mixtures` on one block of filters."""
    numbers = sweep.n_filters * sweep.n_samples * sweep.n_dims
    counts = range(sweep.k_min, sweep.k_max + 1)
    labels = sweep.n_filters * sweep.n_samples * len(counts)
    problems = sweep.n_filters * sweep.n_samples * sweep.n_init
    seeding = sum(5 * k * k + 50 * k for k in counts) * problems * sweep.n_dims / 2
    steps = sweep.em_iterations * sum(em_instructions(sweep.n_dims))
    steps += sweep.lloyd_rounds * lloyd_instructions(sweep.n_dims)
    return [
        Stage("upload", 0, link_bytes=numbers * itemsize),
        Stage("standardise", 1, memory_bytes=4 * numbers * itemsize),
        Stage(
            "fit",
            1,
            instructions=(sweep.pairs * steps + seeding) / sweep.busy_lanes,
            memory_bytes=numbers * itemsize * len(counts),
        ),
        Stage("predict", 1, instructions=sweep.pairs / sweep.n_init * 15, memory_bytes=labels),
        Stage("index and choice", 2, memory_bytes=2 * labels + numbers * itemsize),
    ]


def pca_stages(n_filters: int, n_samples: int, n_pixels: int, rounds: int = 8, itemsize: int = 4) -> list[Stage]:
    """Stages of :func:`gmmcnn.principal_components.cuda.pca_on_device` at 8 columns; a round reads the maps twice."""
    maps = n_filters * n_samples * n_pixels
    return [
        Stage("upload", 0, link_bytes=maps * itemsize),
        Stage("means and start", 3, instructions=10 * maps, memory_bytes=2 * maps * itemsize),
        Stage("rounds", 3 * rounds, instructions=20 * maps * rounds, memory_bytes=2 * rounds * maps * itemsize),
    ]


def statistics_stage(n_filters: int, n_samples: int, n_pixels: int, itemsize: int = 4) -> Stage:
    """The activation of filters on the device (``kernels/activation.cu``): the maps are read once."""
    maps = n_filters * n_samples * n_pixels
    return Stage("activation", 1, instructions=4 * maps, memory_bytes=maps * itemsize)


def way(sweep: Sweep, n_pixels: int, *, cores: int | None = None, held_bytes: float = 512 * 2**20) -> list[Stage]:
    """Stages of the way from maps to fits, of all filters together; what follows another waits for it.

    Parameters
    ----------
    sweep : Sweep
    n_pixels : int
        P.
    cores : int, optional
        Of the host, which decode a store; None where the maps are made on the device.
    held_bytes : float
        Maps made on the device that are held at once; a store is read in blocks of ``STORE_BLOCK_BYTES``.
    """
    n_bytes = 4.0 * sweep.n_filters * sweep.n_samples * n_pixels
    n_blocks = math.ceil(n_bytes / (held_bytes if cores is None else STORE_BLOCK_BYTES))
    upload, *reduce = pca_stages(sweep.n_filters, sweep.n_samples, n_pixels)
    on_device = [statistics_stage(sweep.n_filters, sweep.n_samples, n_pixels), *reduce]
    on_device = [replace(stage, launches=stage.launches * n_blocks) for stage in on_device]
    brought = []
    if cores is not None:
        # Statistics and PCA take the maps to the device each for itself.
        brought = [
            Stage("decode", 0, host_seconds=n_bytes / DECODE_BYTES_PER_SECOND / cores),
            Stage("stage", 0, host_seconds=2 * n_bytes / STAGING_BYTES_PER_SECOND),
            replace(upload, link_bytes=2 * upload.link_bytes),
        ]
    return [*brought, *on_device, *sweep_stages(sweep)]


def resident_blocks(device: Device, threads: int, registers: int, shared_bytes: int) -> int:
    """Thread blocks that a multiprocessor holds at once."""
    registers = -(-registers // 8) * 8
    return min(
        device.max_threads // threads,
        REGISTERS_PER_MULTIPROCESSOR // (registers * threads),
        device.shared_bytes // (shared_bytes + 1024),
        32 if device.max_threads >= 2048 else 16,
    )
