"""What this machine offers, whether its engines agree with the reference, and how long a job would take.

The report is made to be pasted into a bug report. It names the state of trust of the CUDA engine as it is.
"""

import os
import platform
import shutil
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from gmmcnn.config import Settings
from gmmcnn.constants import MAX_DIMS
from gmmcnn.errors import ConvergenceWarning, GmmcnnError, one_line
from gmmcnn.hardware import cost_model as cost
from gmmcnn.hardware import gpu
from gmmcnn.hardware.compiled import examine_cache
from gmmcnn.mixture import cuda
from gmmcnn.mixture.problem import MixtureSettings
from gmmcnn.mixture.sweep import GaussianMixtureSweep
from gmmcnn.principal_components.pca import pca
from gmmcnn.run import estimate
from gmmcnn.run.compiling import compile_ahead

PACKAGES = ("gmmcnn", "numpy", "torch", "numba", "scikit-learn", "cuml-cu12", "cuml-cu13")
EXTRAS = (
    ("torch_pruning", "prune", "prune.method=remove, which writes smaller networks"),
    ("torchvision", "vision", "data sets that are downloaded"),
    ("lightning", "lightning", "the callback for Lightning's Trainer"),
)
"""Module, extra, and what it is good for, of what serves on any machine."""
RUN_ON = "the CUDA engine was run on an NVIDIA H200; for sm_75 to sm_120 it is compiled, and run on an emulated device"
MAX_BOUND_DIFFERENCE = 1e-4
"""Of the lower bounds of fits from the same start: float32 carries about 1e-7 a sample."""
MAX_SCORE_DIFFERENCE = 1e-4
"""Of PCA scores, relative to the largest."""
MIN_EQUAL_LABELS = 0.999
MAX_SCATTER = 1.01
"""Of k-means by cuML over that by scikit-learn."""
BENCHMARK_FILTERS = 1024


def run_doctor(settings: Settings, *, job: estimate.JobSize | None = None) -> tuple[str, int]:
    """Examine the machine and test every engine that it can run.

    Parameters
    ----------
    settings : Settings
        ``engine``: an engine asked for by name must work. ``probe``, ``pca`` and ``gmm`` size the estimate.
    job : estimate.JobSize, optional
        Say how long fitting it takes here, from a probe of a second or so.

    Returns
    -------
    str
        The report, one finding a line, the verdict last.
    int
        0 where every engine that can run here agrees with the reference, and the one asked for can run; else 1.
    """
    if settings.compile:
        compile_ahead(range(1, MAX_DIMS + 1))
    lines, failures = [*_machine(), _cache()], []
    engines = ["cpu"] if gpu.why_unavailable() else ["cpu", "cuda"]
    for engine in engines:
        found, passed = _examine(engine)
        if engine == "cuda" and passed:
            line, passed = _finding(engine, "speed", _benchmark)
            found.append(line)
        lines += found
        failures += [] if passed else [engine]
    if "cuda" in engines and cuda.has_cuml():
        line, passed = _finding("cuml", "starts", _test_cuml_starts)
        lines.append(line)
        failures += [] if passed or settings.engine.cuml == "never" else ["cuml"]
    reason = gpu.why_unavailable()
    if reason:
        lines += [f"cuda      not available: {reason}", f"          {RUN_ON}"]
        failures += ["cuda"] if settings.engine.name == "cuda" else []
    if job:
        engine = engines[-1] if settings.engine.name in ("auto", "cuda") else "cpu"
        lines.append(f"estimate  {estimate.sentence(settings, engine, job)}")
    lines += [f"install   {suggestion}" for suggestion in _to_install()]
    verdict = "all engines of this machine agree with the reference"
    if failures:
        verdict = f"FAILED: {', '.join(failures)}; please report this with the lines above"
    return "\n".join([*lines, f"verdict   {verdict}"]), 1 if failures else 0


def _machine() -> list[str]:
    lines = [f"system    {platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} CPUs"]
    lines.append("packages  " + ", ".join(f"{name} {_version(name)}" for name in PACKAGES if _version(name)))
    if gpu.is_available():
        cupy = gpu.require()
        lines += [_device(cupy, i) for i in range(cupy.cuda.runtime.getDeviceCount())]
        lines.append(
            f"CUDA      CuPy {cupy.__version__}, CUDA {cupy.cuda.runtime.runtimeGetVersion()}, driver "
            f"{cupy.cuda.runtime.driverGetVersion()}; {gpu.visible_devices()}; compiled kernels in {gpu.cache_folder()}"
        )
    return lines


def _device(cupy: Any, number: int) -> str:
    """A line about one device, or about why it does not answer; a part of one (MIG) says so in its name."""
    try:
        with cupy.cuda.Device(number) as device:
            name = cupy.cuda.runtime.getDeviceProperties(number)["name"].decode()
            free, total = device.mem_info
    except Exception as error:  # noqa: BLE001 - of the driver: the other devices may do their work
        return f"device {number}  does not answer: {type(error).__name__}: {one_line(error)}"
    size = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    return f"device {number}  {name}, sm_{device.compute_capability}, {size}"


def _cache() -> str:
    """State of the compiled code on disk, before any of it is loaded."""
    found, sound = examine_cache()
    return f"cache     {'ok     ' if sound else 'DAMAGED'}        {found}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _to_install() -> list[str]:
    """Extras that are not installed and could serve here, each with what it is good for."""
    wanted = [("cupy", "gpu-cu13", "the CUDA engine (gpu-cu12 for older drivers)")] if _has_nvidia_driver() else []
    wanted += [("submitit", "slurm", "sweeps on this cluster")] if shutil.which("sbatch") else []
    missing = [need for need in (*wanted, *EXTRAS) if find_spec(need[0]) is None]
    return [f"pip install 'gmmcnn[{extra}]' for {purpose}" for _, extra, purpose in missing]


def _has_nvidia_driver() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def _examine(engine: str) -> tuple[list[str], bool]:
    """Findings about one engine, and whether it passed."""
    findings, passed = [], True
    for name, test in (("sweep", _test_sweep), ("pca", _test_pca), ("repeat", _test_repeat)):
        found, good = _finding(engine, name, partial(test, engine))
        passed &= good
        findings.append(found)
    return findings, passed


def _finding(what: str, name: str, test: Callable[[], tuple[str, bool]]) -> tuple[str, bool]:
    """A line about one test, and whether it passed."""
    start = time.perf_counter()
    try:
        message, good = test()
    except (GmmcnnError, RuntimeError, ImportError) as error:
        message, good = one_line(error), False
    seconds = time.perf_counter() - start
    return f"{what:<9} {name:<7} {'ok' if good else 'WRONG':<6} {message} ({seconds:.1f} s)", good


def _problem(n_filters: int = 12, n_samples: int = 300) -> NDArray[np.float32]:
    """Scores in three groups, the same on every machine."""
    rng = np.random.default_rng(0)
    centres = 4 * rng.normal(size=(n_filters, 3, 2))
    group = rng.integers(0, 3, (n_filters, n_samples))
    return (centres[np.arange(n_filters)[:, None], group] + rng.normal(size=(n_filters, n_samples, 2))).astype(
        np.float32
    )


def _fit(
    scores: NDArray, engine: str, labels: dict[int, NDArray] | None = None, **settings: Any
) -> GaussianMixtureSweep:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return GaussianMixtureSweep(engine=engine, **settings).fit(scores, labels)


def _test_sweep(engine: str) -> tuple[str, bool]:
    scores, rng = _problem(), np.random.default_rng(1)
    labels = {k: rng.integers(0, k, scores.shape[:2]) for k in range(2, 6)}
    found, expected = (_fit(scores, name, labels, k_max=5) for name in (engine, "reference"))
    bound = float(np.abs(found.lower_bound_ - expected.lower_bound_).max())
    equal = float((found.labels_ == expected.labels_).mean())
    good = bound <= MAX_BOUND_DIFFERENCE and equal >= MIN_EQUAL_LABELS
    return f"lower bound within {bound:.0e} of the reference, {equal:.2%} of labels equal", good


def _test_pca(engine: str) -> tuple[str, bool]:
    maps = estimate.natural_maps(6, 200, 100)
    found, expected = pca(maps, 2, engine=engine), pca(maps, 2, engine="reference")
    difference = float(np.abs(found.scores - expected.scores).max() / np.abs(expected.scores).max())
    return f"scores within {difference:.0e} of the reference", difference <= MAX_SCORE_DIFFERENCE


def _test_repeat(engine: str) -> tuple[str, bool]:
    """The same filters, together and apart, must give the same bits."""
    scores, keys = _problem(8, 200), np.arange(8)
    sweep = GaussianMixtureSweep(k_max=4, n_init=2, max_iter=1000, engine=engine)
    whole = sweep.fit(scores, keys=keys).lower_bound_
    apart = np.concatenate([sweep.fit(scores[i : i + 3], keys=keys[i : i + 3]).lower_bound_ for i in (0, 3, 6)])
    good = bool(np.array_equal(whole, apart))
    return "bitwise equal in other blocks of filters" if good else "results depend on the block of filters", good


def _test_cuml_starts() -> tuple[str, bool]:
    """k-means by cuML, as ``engine.cuml=auto`` asks for it, beside scikit-learn's."""
    scores, k = _problem(4), 3
    found = cuda.cuml_labels(scores, np.arange(len(scores), dtype=np.uint64), MixtureSettings(k, k, n_init=10))[k]
    ratios = [
        _scatter(x, labels) / KMeans(k, n_init=10, random_state=0).fit(x).inertia_
        for x, labels in zip(scores, found, strict=True)
    ]
    return f"k-means within {max(ratios) - 1:.1%} of scikit-learn's", max(ratios) <= MAX_SCATTER


def _scatter(points: NDArray, labels: NDArray) -> float:
    """Sum of squared distances to the mean of the own cluster."""
    clusters = (points[labels == label].astype(np.float64) for label in np.unique(labels))
    return sum(float(np.square(cluster - cluster.mean(axis=0)).sum()) for cluster in clusters)


def _benchmark() -> tuple[str, bool]:
    """Time of a sweep on the device beside the floor of the cost model."""
    attributes = gpu.require().cuda.Device().attributes
    clock_hz = attributes.get("ClockRate", 1.5e6) * 1e3
    device = cost.Device("this device", attributes["MultiProcessorCount"], clock_hz, 1e12, 0)
    scores = _problem(BENCHMARK_FILTERS, 1000)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        sweep = _fit(scores, "cuda")
        seconds.append(time.perf_counter() - start)
    sizes = cost.Sweep(len(scores), 1000, em_iterations=float(sweep.n_iter_.mean()))
    floor = sum(stage.floor_seconds(device) for stage in cost.sweep_stages(sizes))
    return (
        f"{min(seconds):.4f} s for {len(scores)} filters, N = 1000, d = 2, K = 2 … 10; the cost model's floor is "
        f"{floor:.4f} s"
    ), True
