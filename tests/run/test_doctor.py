import re
from typing import Any

import numpy as np
import pytest
from cuda_shim import fake_cupy
from cuda_shim.fixtures import cupy, fibers
from sklearn.cluster import KMeans

from gmmcnn import config
from gmmcnn.hardware import cost_model as cost
from gmmcnn.mixture import cuda
from gmmcnn.run import doctor, estimate

__all__ = ["cupy", "fibers"]

SMALL = config.Settings(probe=config.Probe(samples=50, batches=3), gmm=config.Gmm(k_max=3))


def asking_for(engine: str) -> config.Settings:
    return config.Settings(engine=config.Engine(name=engine))


@pytest.fixture
def no_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cupy", None)


@pytest.mark.usefixtures("no_cupy")
def test_a_machine_without_a_gpu_passes_and_says_what_is_not_known() -> None:
    text, code = doctor.run_doctor(asking_for("auto"))
    assert code == 0
    assert "cuda      not available: CuPy cannot be imported" in text
    assert "was run on" in text
    assert text.splitlines()[-1] == "verdict   all engines of this machine agree with the reference"


@pytest.mark.usefixtures("no_cupy")
def test_an_engine_asked_for_by_name_must_work() -> None:
    text, code = doctor.run_doctor(asking_for("cuda"))
    assert code == 1
    assert "verdict   FAILED: cuda" in text


@pytest.mark.parametrize("works", [True, False])
def test_cuml_is_tried_where_it_is_installed(fibers: Any, monkeypatch: pytest.MonkeyPatch, works: bool) -> None:
    def labels(scores: Any, keys: Any, settings: Any) -> dict[int, np.ndarray]:
        if not works:
            raise ImportError("libcuml.so: cannot open")
        return {k: np.stack([KMeans(k, n_init=10).fit_predict(x) for x in scores]) for k in settings.component_counts}

    monkeypatch.setattr(cuda, "has_cuml", lambda: True)
    monkeypatch.setattr(cuda, "cuml_labels", labels)
    monkeypatch.setattr(doctor, "_examine", lambda engine: ([], False))
    asked = config.Settings(engine=config.Engine("cpu", cuml="auto"))
    text, _ = doctor.run_doctor(asked)
    said = (
        "cuml      starts  ok     k-means within 0.0% of scikit-learn's"
        if works
        else "cuml      starts  WRONG  libcuml.so"
    )
    assert said in text
    assert ("cuml" in text.splitlines()[-1]) != works


@pytest.mark.usefixtures("no_cupy")
def test_the_cache_is_looked_at_before_an_engine_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(doctor, "examine_cache", lambda: order.append("cache") or ("the file is damaged", False))
    monkeypatch.setattr(doctor, "_examine", lambda engine: order.append(engine) or ([], True))
    text, code = doctor.run_doctor(asking_for("auto"))
    assert order == ["cache", "cpu"]
    assert "cache     DAMAGED        the file is damaged" in text
    assert code == 0  # mended: it is compiled anew


@pytest.mark.usefixtures("no_cupy")
def test_what_could_be_installed_is_named_with_its_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/sbatch" if name == "sbatch" else None)
    monkeypatch.setattr(doctor, "_has_nvidia_driver", lambda: False)
    found = doctor._to_install()
    assert found[0] == "pip install 'gmmcnn[slurm]' for sweeps on this cluster"
    assert [line.split("[")[1].split("]")[0] for line in found] == ["slurm", "prune", "vision", "lightning"]
    monkeypatch.setattr(doctor, "find_spec", lambda name: object())
    assert doctor._to_install() == []


@pytest.mark.usefixtures("no_cupy")
def test_the_estimate_names_the_job() -> None:
    size = estimate.JobSize(layers=((6, 25), (16, 9)), n_checkpoints=4, n_batches=2)
    text, _ = doctor.run_doctor(SMALL, job=size)
    (line,) = [line for line in text.splitlines() if line.startswith("estimate")]
    assert "on the cpu engine to fit 22 filters in 2 batches of N = 50 at 4 checkpoints" in line
    assert "K = 2 … 3, n_init = 1, repeats = 10: mixtures" in line
    total, mixtures, components = (float(number) for number in re.findall(r"(\S+) s\b", line))
    assert mixtures > 0
    assert components > 0
    assert total == pytest.approx(mixtures + components, rel=0.15)  # each is rounded to two digits


def test_every_engine_is_tested(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if cupy.__version__ == "0":  # fibers are no GPU
        monkeypatch.setattr(doctor, "BENCHMARK_FILTERS", 2)
    text, code = doctor.run_doctor(asking_for("cuda"))
    assert code == 0, text
    for finding in ("cuda      sweep   ok", "cuda      pca     ok", "cuda      repeat  ok", "cuda      speed   ok"):
        assert finding in text


def test_every_device_has_a_line_though_one_does_not_answer(fibers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def properties(number: int) -> dict[str, bytes]:
        if number == 1:
            raise fake_cupy.CUDARuntimeError("cudaErrorDevicesUnavailable: all devices are busy")
        return {"name": b"NVIDIA H100 80GB HBM3 MIG 1g.10gb"}

    monkeypatch.setattr(fake_cupy.limits, "n_devices", 3)
    monkeypatch.setattr(fibers.cuda.runtime, "getDeviceProperties", properties)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    monkeypatch.setenv("CUPY_CACHE_DIR", "/scratch/kernels")
    lines = doctor._machine()
    assert lines[2:5] == [
        "device 0  NVIDIA H100 80GB HBM3 MIG 1g.10gb, sm_90, 16.0 of 16.0 GiB free",
        "device 1  does not answer: CUDARuntimeError: cudaErrorDevicesUnavailable: all devices are busy",
        "device 2  NVIDIA H100 80GB HBM3 MIG 1g.10gb, sm_90, 16.0 of 16.0 GiB free",
    ]
    assert lines[5].endswith("driver 13000; CUDA_VISIBLE_DEVICES='4,5,6'; compiled kernels in /scratch/kernels")


def test_a_speed_that_cannot_be_taken_fails(fibers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise fake_cupy.CUDARuntimeError("cudaErrorLaunchTimeout")

    for name in ("_test_sweep", "_test_pca", "_test_repeat"):
        monkeypatch.setattr(doctor, name, lambda engine: ("fine", True))
    monkeypatch.setattr(doctor, "_benchmark", fails)
    text, code = doctor.run_doctor(asking_for("auto"))
    assert code == 1
    assert "cuda      speed   WRONG  cudaErrorLaunchTimeout" in text


def test_a_wrong_engine_fails(fibers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    right = cuda.fit_mixtures

    def wrong(*arguments: Any) -> Any:
        result = right(*arguments)
        np.add(result.lower_bound, 0.01, out=result.lower_bound)
        return result

    monkeypatch.setattr(cuda, "fit_mixtures", wrong)
    text, code = doctor.run_doctor(asking_for("auto"))
    assert code == 1
    assert "cuda      sweep   WRONG" in text
    assert "verdict   FAILED: cuda" in text


def test_a_floor_is_what_binds() -> None:
    device = cost.Device("one", multiprocessors=1, clock_hz=1e9, bytes_per_second=1e9, shared_bytes=64 * 1024)
    assert cost.Stage("a", 1, instructions=128e9).floor_seconds(device) == pytest.approx(1)
    assert cost.Stage("a", 1, instructions=128e9, memory_bytes=3e9).floor_seconds(device) == pytest.approx(3)
    assert cost.em_instructions(2) == (18, 27)
    assert cost.lloyd_instructions(2) == 35
    sweep = cost.Sweep(n_filters=3, n_samples=10, k_min=2, k_max=4, n_init=5)
    assert sweep.pairs == 3 * 10 * (2 + 3 + 4) * 5


def test_the_sweep_on_an_h100_is_bound_by_arithmetic_and_below_50_ms() -> None:
    """4,096 filters, N = 1000, K = 2 … 10, d = 2, at 30 % of the issue rate that the floor assumes."""
    h100 = cost.DEVICES[0]
    stages = cost.sweep_stages(cost.Sweep(4096, 1000))
    fit = next(stage for stage in stages if stage.name == "fit")
    others = sum(stage.floor_seconds(h100) for stage in stages if stage is not fit)
    assert fit.instructions / h100.instructions_per_second > 10 * fit.memory_bytes / h100.bytes_per_second
    assert others < 0.1 * fit.floor_seconds(h100)
    assert sum(stage.launches for stage in stages) * 10e-6 < 0.01 * fit.floor_seconds(h100)
    assert fit.floor_seconds(h100) / 0.3 + others < 0.05


def test_resident_blocks_are_bound_by_the_scarcest_resource() -> None:
    h100 = cost.DEVICES[0]
    shared = cuda.static_bytes(2, 16, "float32") + cuda.points_bytes(1000, 2, "float32")
    assert cost.resident_blocks(h100, 128, 64, shared) == 8  # registers
    assert cost.resident_blocks(h100, 128, 32, 100_000) == 2  # shared memory
    assert cost.resident_blocks(h100, 256, 16, 1000) == 8  # threads
