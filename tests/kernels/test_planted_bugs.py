"""Bugs planted in the real kernels and in the host code, and the rung of the ladder that must catch each.

``parity``: on the emulated device results are wrong under some schedule, or the launch is refused. ``check``: the check
mode names the fault. The table says which must see it.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cuda_shim import fake_cupy
from cuda_shim.device import SCHEDULES, KernelError, device

from gmmcnn.featuremaps.activation import activation_statistics
from gmmcnn.hardware import gpu, kernel_loader, upload
from gmmcnn.mixture import cuda
from gmmcnn.mixture.problem import MixtureSettings
from gmmcnn.principal_components import cuda as pca_cuda

BARRIER = "        __syncthreads();\n"

# file, text, what takes its place, rungs that catch it, what the check mode says
PLANTED = {
    "no barrier between E-step and M-step": (
        "gmm_em", f"{BARRIER}        accumulate", "        accumulate", "check", "race|uninitialised"),
    "no barrier before the next tile": (
        "gmm_em", "        if (start > 0) __syncthreads();\n", "", "check", "race"),
    "no barrier after new parameters": (
        "gmm_em", f"maximise(problem, threadIdx.x, reg_covar, false);\n{BARRIER}",
        "maximise(problem, threadIdx.x, reg_covar, false);\n", "check", "race"),
    "barrier in a branch": (
        "gmm_em", "        if (lane() == 0) shared.partial[0] = moved;\n    }\n    __syncthreads();",
        "        if (lane() == 0) shared.partial[0] = moved;\n        __syncthreads();\n    }", "parity check",
        "divergent|uninitialised"),
    "one sample too many from global memory": (
        "gmm_em", "n < D * n_samples; n += blockDim.x", "n <= D * n_samples; n += blockDim.x",
        "check", "out of bounds"),
    "one component too many": (
        "gmm_em", "for (int k = 0; k < problem.n_components; k++) {",
        "for (int k = 0; k <= problem.n_components; k++) {", "parity check", "uninitialised"),
    "component never initialised": (
        "gmm_em", "set_centre(shared.components[threadIdx.x]);", ";", "parity check", "uninitialised"),
    "nearest distance starts at zero": (
        "gmm_em", "real nearest = -NEVER;", "real nearest = 0;", "parity", ""),
    "covariance not regularised": (
        "gmm_em", "double value = j == i ? reg_covar * HALF_LOG2_E : 0;", "double value = 0;", "parity", ""),
    "seed ignored": (
        "common.cuh", "(unsigned)stream.seed,", "0,", "parity", ""),
    "totals of the wrong lane": (
        "common.cuh", "bool upper = lane() & half;", "bool upper = !(lane() & half);", "parity", ""),
    "one map too many": (
        "activation", "if (map >= n_maps) return;", "", "check", "out of bounds"),
    "the last pixels left out": (
        "activation", "p < n_pixels; p += WARP", "p + WARP < n_pixels; p += WARP", "parity", ""),
    "no warp barrier in the factorisation": (
        "pca", "value / pivot : 0;\n        __syncwarp();\n", "value / pivot : 0;\n", "check", "race"),
    "one sample too many of the maps": (
        "pca", "min(first + r, n_samples - 1)", "(first + r)", "check", "out of bounds"),
}  # fmt: skip


def reduce() -> list[np.ndarray]:
    """Everything that a small PCA returns."""
    maps = np.maximum(np.random.default_rng(0).normal(size=(2, 37, 12)), 0).astype(np.float32)
    return list(vars(pca_cuda.pca_on_device(maps, 2)).values())


def measure() -> list[np.ndarray]:
    """Activation of a few small maps, on the device."""
    maps = np.random.default_rng(0).normal(size=(3, 7, 50)).astype(np.float32)
    return list(activation_statistics(gpu.require().asarray(maps)))


def fit() -> list[np.ndarray]:
    """Everything that a small sweep returns; two tiles, a ragged end, an own start."""
    rng = np.random.default_rng(0)
    scores = (rng.normal(size=(2, 1100, 2)) + 5 * rng.integers(0, 3, (2, 1100, 1))).astype(np.float32)
    scores[1, 60:] = scores[1, 0]  # fewer samples matter: reg_covar does
    keys, settings = (
        np.arange(2, dtype=np.uint64),
        MixtureSettings(k_min=3, k_max=3, max_iter=3, reg_covar=1e-3, seed=9),
    )
    return list(vars(cuda.fit_mixtures(scores, keys, settings, {})).values())


Run = Callable[[], list[np.ndarray]]


def run_under(schedule: str, run: Run) -> list[np.ndarray]:
    """Results under a schedule, or none where the device refuses to go on."""
    with device(schedule=schedule):
        try:
            return run()
        except KernelError:
            return []


def same(one: list[np.ndarray], other: list[np.ndarray], tolerance: float = 0.0) -> bool:
    return len(one) == len(other) and all(
        np.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True) for a, b in zip(one, other, strict=True)
    )


def plant(monkeypatch: pytest.MonkeyPatch, file: str, text: str, instead: str) -> None:
    read = kernel_loader._read

    def edited(name: str) -> str:
        source = read(name)
        if name.removesuffix(".cu") != file:
            return source
        assert text in source, f"{file} has changed: plant this bug anew"
        return source.replace(text, instead, 1)

    monkeypatch.setattr(kernel_loader, "_read", edited)
    kernel_loader.clear()


@pytest.mark.parametrize("name", PLANTED)
def test_planted_bug_is_caught(fibers: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    file, text, instead, rungs, message = PLANTED[name]
    run = {"pca": reduce, "activation": measure}.get(file, fit)
    intact = run()
    plant(monkeypatch, file, text, instead)
    if "parity" in rungs:
        assert any(not same(run_under(schedule, run), intact, tolerance=1e-4) for schedule in SCHEDULES)
    if "check" in rungs:
        with device(check=True), pytest.raises(KernelError, match=message):
            run()


@pytest.mark.parametrize("run", [fit, reduce])
def test_intact_kernels_pass_the_check_mode(fibers: Any, run: Run) -> None:
    intact = run()
    for schedule in SCHEDULES:
        with device(check=True, schedule=schedule):
            assert same(run(), intact)


HOST_BUGS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], type[Exception], str]] = {
    "shared memory one sample short": (
        lambda patch: patch.setattr(cuda, "points_bytes", lambda n, d, _: 4 * n * d - 4), KernelError, "out of bounds"),
    "more shared memory than the device has": (
        lambda patch: patch.setattr(gpu, "shared_bytes_per_multiprocessor", lambda: 10**9), ValueError, "device has"),
    "threads that are no whole warps": (
        lambda patch: patch.setattr(cuda, "n_threads", lambda _: 100), ValueError, "multiple of 32"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOST_BUGS)
def test_planted_host_bug_is_caught(fibers: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    bug, error, message = HOST_BUGS[name]
    bug(monkeypatch)
    scores = np.random.default_rng(0).normal(size=(1, 40000 if "device has" in message else 70, 2)).astype(np.float32)
    settings = MixtureSettings(k_min=2, k_max=2, max_iter=1)
    with device(check=True), pytest.raises(error, match=message):
        cuda.fit_mixtures(scores, np.zeros(1, np.uint64), settings, {})


@pytest.mark.parametrize("missing", ["wait_event", "synchronize"])
def test_a_missing_wait_between_copy_and_compute_is_caught(
    fibers: Any, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """Without its waits an upload computes on what has not arrived, or fills a piece again that has not left."""
    array = np.random.default_rng(0).normal(size=(8, 5))
    monkeypatch.setattr(gpu, "_free_bytes", lambda _: 4 * 80 / gpu.FREE_MEMORY_SHARE)
    monkeypatch.setattr(upload, "STAGING_BYTES", 2 * 40)
    work = lambda _, block: fibers.asnumpy(block)  # noqa: E731
    assert np.array_equal(np.concatenate(gpu.map_blocks(array, 160, work)), array)
    if missing == "wait_event":  # the computing stream does not wait for the copy
        monkeypatch.setattr(fake_cupy.Stream, "wait_event", lambda *_: None)
    else:  # a page-locked piece is filled again before its copy is done
        monkeypatch.setattr(fake_cupy.Event, "synchronize", lambda _: None)
    assert not np.array_equal(np.concatenate(gpu.map_blocks(array, 160, work)), array)
