"""The first hour on a machine with a CUDA device: does it compile, agree and keep its word there, and how fast is it?

``python -m benchmarks.first_day`` prints one block, which tells whoever was not there what they need to know. Each step
runs as a process of its own under a limit of its own, so that a hang or a crash costs that step alone; those that prove
most come first. ``python -m benchmarks.first_day STEP`` runs one of :data:`STEPS` here.
"""

import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from gmmcnn.hardware import cost_model, gpu, kernel_loader
from gmmcnn.mixture import cuda, reference
from gmmcnn.mixture.problem import MixtureSettings, SweepResult
from gmmcnn.mixture.sweep import GaussianMixtureSweep
from gmmcnn.principal_components.cuda import pca_on_device
from gmmcnn.principal_components.pca import pca

PACKAGES = ("numpy", "torch", "cupy", "numba", "zarr", "hydra", "pandas", "sklearn", "cuml")
TESTS = [
    "tests/test_on_a_gpu.py",
    *(f"tests/{part}" for part in ("kernels", "mixture", "hardware", "filters", "featuremaps", "run")),
]
IN_PARALLEL = ["-n", "8", "-p", "no:benchmark"] if find_spec("xdist") else []
N_FILTERS, N_SAMPLES = 512, 1000


def facts() -> None:
    """Card, driver, compiler, packages."""
    query = "--query-gpu=name,driver_version,memory.total,compute_mode,mig.mode.current"
    subprocess.run(["nvidia-smi", query, "--format=csv,noheader"], check=False)
    cupy = gpu.require()
    attributes = cupy.cuda.Device().attributes
    print("compute capability", cupy.cuda.Device().compute_capability, "NVRTC", cupy.cuda.nvrtc.getVersion())
    names = ("ClockRate", "MultiProcessorCount", "MaxSharedMemoryPerMultiprocessor", "MaxSharedMemoryPerBlockOptin")
    print({name: attributes.get(name) for name in names})
    for name in PACKAGES:
        try:
            print(name, getattr(import_module(name), "__version__", "?"))
        except Exception as error:  # noqa: BLE001 - whatever a package raises where it does not fit
            print(name, "missing:", repr(error)[:120])


def compiles() -> None:
    """Seconds and registers of the main kernels."""
    macros = cuda.macros(N_SAMPLES, 2, 10, "float32", gpu.shared_bytes_per_multiprocessor()) | {"SCORE": "float"}
    index, columns = {"DIMS": 2, "REAL": "float"}, {"REAL": "float", "COLUMNS": 8}
    wanted = [("gmm_em", name, macros) for name in ("standardise", "fit_mixtures", "predict")]
    wanted += [("calinski_harabasz", "calinski_harabasz", index)]
    wanted += [("pca", name, columns) for name in ("project", "backproject", "rotate")]
    for file, name, given in wanted:
        start = time.perf_counter()
        kernel = kernel_loader.kernel(file, name, **given)
        print(f"{file} {name}: {kernel.num_regs} registers, {kernel.local_size_bytes} bytes spilled", end=", ")
        print(f"{time.perf_counter() - start:.2f} s", flush=True)


def host_path() -> None:
    """Same bits through blocks, streams, tensors, a device that is nearly full; agreement with the reference."""
    import torch

    cupy = gpu.require()
    rng, settings = np.random.default_rng(0), MixtureSettings(k_max=6)
    keys = np.arange(N_FILTERS, dtype=np.uint64)
    scores = _scores(rng, N_FILTERS, N_SAMPLES)
    whole = cuda.fit_mixtures(scores, keys, settings, {})
    on_device = torch.from_numpy(scores).cuda()

    def same(given: Any) -> bool:
        return _equal(cuda.fit_mixtures(given, keys, settings, {}), whole)

    def in_blocks() -> bool:
        with _free_bytes(37 * cuda.bytes_per_filter(N_SAMPLES, 2, settings) / gpu.FREE_MEMORY_SHARE):
            return same(scores)

    def on_a_busy_stream() -> bool:
        with torch.cuda.stream(torch.cuda.Stream()):
            busy = torch.randn(8192, 8192, device="cuda")
            for _ in range(20):
                busy = busy @ busy / 100
            return same(on_device.clone())

    def nearly_full() -> bool:
        left = 3 * 2**20 + 40 * cuda.bytes_per_filter(N_SAMPLES, 2, settings)
        taken = cupy.empty(int(cupy.cuda.Device().mem_info[0] - left), np.uint8)
        try:
            with _free_bytes(1e11):  # an estimate that others have overtaken
                return same(scores)
        finally:
            del taken
            cupy.get_default_memory_pool().free_all_blocks()

    def chosen_as_by_the_reference() -> float:
        exact = reference.fit_mixtures(scores[:16], keys[:16], settings, {})
        return float((whole.n_components[:16] == exact.n_components).mean())

    patterns = (np.exp(-np.arange(12) / 3)[:, None] * rng.normal(size=(4, 12, 784))).astype(np.float32)
    maps = np.maximum(rng.normal(size=(4, N_SAMPLES, 12)).astype(np.float32) @ patterns, 0)
    exact = pca(maps.astype(np.float64), 2, engine="reference").scores

    def error_of_pca(given: Any) -> float:
        return float(np.abs(pca(given, 2, engine="cuda").scores - exact).max() / np.abs(exact).max())

    _attempt("many blocks through page-locked buffers: same bits", in_blocks)
    _attempt("ten launches: same bits", lambda: all(same(scores) for _ in range(10)))
    _attempt("torch tensor: same bits", lambda: same(on_device))
    _attempt("torch tensor made on a busy side stream: same bits", on_a_busy_stream)
    _attempt("CuPy array: same bits", lambda: same(cupy.asarray(scores)))
    _attempt("tensor that requires gradients", lambda: same(on_device.clone().requires_grad_()))
    _attempt("K as by the reference, 16 filters", chosen_as_by_the_reference)
    _attempt("PCA of host maps, relative error of scores", lambda: error_of_pca(maps))
    _attempt("PCA of a CUDA tensor, relative error of scores", lambda: error_of_pca(torch.from_numpy(maps).cuda()))
    _attempt("device nearly full, blocks halved: same bits", nearly_full)


def speed() -> None:
    """Times beside the cost model's floor, and beside the CPU engine on all cores of this machine."""
    warnings.simplefilter("ignore")
    cupy, rng = gpu.require(), np.random.default_rng(0)
    attributes = cupy.cuda.Device().attributes
    here = cost_model.Device(
        "here", attributes["MultiProcessorCount"], attributes.get("ClockRate", 1.5e6) * 1e3, 3e12, 0
    )
    for n_filters, n_samples, n_init in ((21, 1000, 1), (256, 1000, 1), (4096, 1000, 1), (4096, 200, 10)):
        scores = _scores(rng, n_filters, n_samples)
        on_device = cupy.asarray(scores)
        fits = GaussianMixtureSweep(engine="cuda", n_init=n_init)
        seconds = _best(lambda fits=fits, x=on_device: fits.fit(x))
        sizes = cost_model.Sweep(n_filters, n_samples, n_init=n_init, em_iterations=float(fits.n_iter_.mean()))
        floor = sum(stage.floor_seconds(here) for stage in cost_model.sweep_stages(sizes))
        few = scores[:256]
        on_cpu = _best(lambda x=few, n=n_init: GaussianMixtureSweep(engine="cpu", n_init=n).fit(x), 1)
        on_cpu *= n_filters / len(few)
        print(
            f"sweep F={n_filters} N={n_samples} n_init={n_init}: {seconds * 1e3:.2f} ms, {n_filters / seconds:,.0f} "
            f"filters/s; floor {floor * 1e3:.2f} ms; CPU engine on all cores {on_cpu / seconds:.1f} × as long",
            flush=True,
        )
    for n_filters, n_samples, n_pixels in ((21, 1000, 784), (2048, 1000, 784), (64, 1000, 12544)):
        maps = _maps(cupy, n_filters, n_samples, n_pixels)
        seconds = _best(lambda x=maps: pca_on_device(x))
        few = cupy.asnumpy(maps[: max(1, 2**28 // (4 * n_samples * n_pixels))])
        from_host, on_cpu = _best(lambda x=few: pca_on_device(x)), _best(lambda x=few: pca(x, 2, engine="cpu"), 1)
        print(
            f"pca F={n_filters} N={n_samples} P={n_pixels}: {seconds * 1e3:.1f} ms, {maps.nbytes / seconds / 1e9:,.0f} "
            f"GB/s of maps on the device; {few.nbytes / from_host / 1e9:.1f} GB/s from the host, where the CPU engine "
            f"on all cores does {few.nbytes / on_cpu / 1e9:.1f}",
            flush=True,
        )


STEPS: dict[str, tuple[int, Callable[[], None] | list[str]]] = {
    "facts": (40, facts),
    "compile": (60, compiles),
    "doctor": (110, ["-m", "gmmcnn", "task=doctor", "engine=cuda", "estimate=true"]),
    "tests": (
        170,
        [
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            *IN_PARALLEL,
            "-m",
            "gpu",
            "--maxfail=8",
            "--durations=5",
            *TESTS,
        ],
    ),
    "host path": (70, host_path),
    "speed": (80, speed),
    "pipeline": (60, ["-m", "gmmcnn", "engine=cuda", "model=lenet5", "train.epochs=2", "run=runs/first-day"]),
}
"""Name → limit in seconds, and what it does: a function, or arguments of Python."""


def main(chosen: list[str]) -> int:
    """Run one step here, or all of them apart; exit code."""
    if chosen:
        step = STEPS[" ".join(chosen)][1]
        assert callable(step), f"expected one of {[name for name, (_, step) in STEPS.items() if callable(step)]}"
        step()
        return 0
    failed = []
    for name, (limit, step) in STEPS.items():
        arguments = ["-m", "benchmarks.first_day", *name.split()] if callable(step) else step
        start = time.perf_counter()
        print(f"=== {name}", flush=True)
        try:
            code = subprocess.run(
                [sys.executable, "-X", "faulthandler", *arguments], timeout=limit, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            code = "none within its limit"
        failed += [name] if code else []
        print(f"=== {name}: exit code {code}, {time.perf_counter() - start:.0f} s", flush=True)
    print(f"=== {len(STEPS) - len(failed)} of {len(STEPS)} steps passed; failed: {', '.join(failed) or 'none'}")
    return int(bool(failed))


def _scores(rng: np.random.Generator, n_filters: int, n_samples: int) -> np.ndarray:
    """Scores (F, N, 2) in three groups."""
    groups = 4 * rng.integers(0, 3, (n_filters, n_samples, 1))
    return (rng.normal(size=(n_filters, n_samples, 2)) + groups).astype(np.float32)


def _maps(cupy: Any, n_filters: int, n_samples: int, n_pixels: int) -> Any:
    """Maps (F, N, P) on the device whose principal components fall off as those of real ones do."""
    random = cupy.random.RandomState(0)
    patterns = cupy.exp(-cupy.arange(12) / 3)[:, None] * random.standard_normal((n_filters, 12, n_pixels))
    loadings = random.standard_normal((n_filters, n_samples, 12)).astype(cupy.float32)
    return cupy.maximum(loadings @ patterns.astype(cupy.float32), 0)


def _equal(found: SweepResult, expected: SweepResult) -> bool:
    """Whether all arrays of two results are the same, bit by bit."""
    return all(
        np.array_equal(array, getattr(expected, name), equal_nan=array.dtype.kind == "f")
        for name, array in vars(found).items()
    )


def _attempt(name: str, work: Callable[[], object]) -> None:
    start = time.perf_counter()
    try:
        outcome = str(work())
    except Exception as error:  # noqa: BLE001 - the other attempts are worth making
        outcome = f"RAISED {type(error).__name__}: {str(error)[:300]}"
    print(f"{name}: {outcome} ({time.perf_counter() - start:.2f} s)", flush=True)


@contextmanager
def _free_bytes(pretended: float) -> Iterator[None]:
    real = gpu._free_bytes
    gpu._free_bytes = lambda _: int(pretended)
    try:
        yield
    finally:
        gpu._free_bytes = real


def _best(work: Callable[[], object], n: int = 3) -> float:
    """Seconds of the quickest of n calls, after one that compiles."""
    cupy = gpu.require()
    work()
    seconds = []
    for _ in range(n):
        cupy.cuda.Device().synchronize()
        start = time.perf_counter()
        work()
        cupy.cuda.Device().synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
