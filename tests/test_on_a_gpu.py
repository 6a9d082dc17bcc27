"""The CUDA engine on a real device: what an emulated one cannot prove. All of it runs by ``pytest -m gpu``."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gmmcnn.errors import EngineError
from gmmcnn.hardware import gpu
from gmmcnn.mixture import cuda, reference
from gmmcnn.mixture.problem import MixtureSettings, SweepResult
from gmmcnn.principal_components.cuda import pca_on_device
from gmmcnn.principal_components.pca import pca

pytestmark = pytest.mark.gpu

SETTINGS = MixtureSettings(k_max=5)
N_FILTERS = 96
KEYS = np.arange(N_FILTERS, dtype=np.uint64)


@pytest.fixture(scope="module")
def cupy(request: pytest.FixtureRequest) -> Any:
    reason = gpu.why_unavailable()
    if reason and request.config.option.markexpr == "gpu":
        pytest.fail(f"a GPU run without a GPU: {reason}")
    if reason:
        pytest.skip(reason)
    return gpu.require()


def scores_of(n_filters: int, n_samples: int) -> np.ndarray:
    """Scores (F, N, 2) in three groups."""
    rng = np.random.default_rng(0)
    groups = 4 * rng.integers(0, 3, (n_filters, n_samples, 1))
    return (rng.normal(size=(n_filters, n_samples, 2)) + groups).astype(np.float32)


def maps_of(n_filters: int) -> np.ndarray:
    """Maps (F, 500, 196) that are nowhere negative, with a spectrum that falls off."""
    rng = np.random.default_rng(1)
    patterns = np.exp(-np.arange(12) / 3)[:, None] * rng.normal(size=(n_filters, 12, 196))
    return np.maximum(rng.normal(size=(n_filters, 500, 12)) @ patterns, 0).astype(np.float32)


SCORES = scores_of(N_FILTERS, 700)


@pytest.fixture(scope="module")
def whole(cupy: Any) -> SweepResult:
    """Fits of all filters at once, from host memory."""
    return cuda.fit_mixtures(SCORES, KEYS, SETTINGS, {})


def assert_same(found: SweepResult, expected: SweepResult) -> None:
    """Every array bit by bit."""
    for name, array in vars(found).items():
        np.testing.assert_array_equal(array, getattr(expected, name), err_msg=name)


@pytest.fixture
def filters_at_once(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let memory seem to hold so many filters."""
    per_filter = cuda.bytes_per_filter(700, 2, SETTINGS)

    def of(n: int) -> None:
        monkeypatch.setattr(gpu, "_free_bytes", lambda _: (n + 0.5) * per_filter / gpu.FREE_MEMORY_SHARE)

    return of


@pytest.mark.parametrize("n", [1, 7, 40])
def test_blocks_of_any_size_give_the_same_bits(whole: SweepResult, filters_at_once: Any, n: int) -> None:
    filters_at_once(n)
    assert_same(cuda.fit_mixtures(SCORES, KEYS, SETTINGS, {}), whole)


def test_uploads_in_many_pieces_give_the_same_bits(
    whole: SweepResult, filters_at_once: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gmmcnn.hardware import upload

    filters_at_once(40)
    for staging in (2 * 4 * 333, 2 * SCORES[0].nbytes * 3):
        monkeypatch.setattr(upload, "STAGING_BYTES", staging)
        assert_same(cuda.fit_mixtures(SCORES, KEYS, SETTINGS, {}), whole)


@pytest.fixture
def nearly_full(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave CuPy's pool no room for more than ten filters, while an estimate that is overtaken says there is plenty."""
    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    limit = pool.get_limit()
    pool.set_limit(size=pool.used_bytes() + 10 * cuda.bytes_per_filter(700, 2, SETTINGS))
    monkeypatch.setattr(gpu, "_free_bytes", lambda _: 10**12)
    yield
    pool.set_limit(size=limit)
    pool.free_all_blocks()


def test_memory_that_runs_out_halves_the_blocks(whole: SweepResult, nearly_full: None) -> None:
    assert_same(cuda.fit_mixtures(SCORES, KEYS, SETTINGS, {}), whole)


def test_a_filter_that_does_not_fit_is_an_engine_error(cupy: Any, nearly_full: None) -> None:
    with pytest.raises(EngineError, match=r"one filter needs about \d+ MiB of device memory"):
        cuda.fit_mixtures(scores_of(1, 200_000), KEYS[:1], SETTINGS, {})


def test_arrays_of_cupy_and_torch_give_the_same_bits(cupy: Any, whole: SweepResult) -> None:
    tensor = torch.from_numpy(SCORES).cuda()
    strided = torch.from_numpy(np.repeat(SCORES, 2, axis=1)).cuda()[:, ::2]
    for given in (cupy.asarray(SCORES), tensor, strided, tensor.clone().requires_grad_()):
        assert_same(cuda.fit_mixtures(given, KEYS, SETTINGS, {}), whole)


def test_a_tensor_made_on_a_busy_side_stream_is_waited_for(whole: SweepResult) -> None:
    tensor = torch.from_numpy(SCORES).cuda()
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        busy = torch.randn(4096, 4096, device="cuda")
        for _ in range(20):
            busy = busy @ busy / 100
        late = torch.full_like(tensor, torch.nan).copy_(tensor + 0 * busy[0, 0].nan_to_num(0, 0, 0))
        assert_same(cuda.fit_mixtures(late, KEYS, SETTINGS, {}), whole)


def test_many_samples_of_a_filter_agree_with_the_reference(cupy: Any) -> None:
    scores, settings = scores_of(3, 3000), MixtureSettings(k_max=4, dtype="float64")
    found, expected = (engine.fit_mixtures(scores, KEYS[:3], settings, {}) for engine in (cuda, reference))
    np.testing.assert_array_equal(found.n_components, expected.n_components)
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_allclose(found.lower_bound, expected.lower_bound, atol=1e-6)


def test_maps_on_the_device_have_the_components_of_those_on_the_host(cupy: Any, monkeypatch: Any) -> None:
    maps = maps_of(6)
    exact, from_host = pca(maps.astype(np.float64), 2, engine="reference"), pca_on_device(maps)
    np.testing.assert_allclose(from_host.scores, exact.scores, atol=1e-4 * np.abs(exact.scores).max())
    for given in (cupy.asarray(maps), torch.from_numpy(maps).cuda()):
        np.testing.assert_array_equal(pca_on_device(given).scores, from_host.scores)
    monkeypatch.setattr(gpu, "_free_bytes", lambda _: 0)  # a filter at a time
    np.testing.assert_array_equal(pca_on_device(maps).scores, from_host.scores)


def test_maps_in_half_precision_are_read_on_the_device(cupy: Any) -> None:
    maps = maps_of(3).astype(np.float16)
    expected = pca_on_device(maps.astype(np.float32)).scores
    for given in (maps, cupy.asarray(maps), torch.from_numpy(maps).cuda()):
        np.testing.assert_array_equal(pca_on_device(given).scores, expected)


def test_two_devices_give_the_same_bits(cupy: Any, whole: SweepResult, monkeypatch: pytest.MonkeyPatch) -> None:
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("one device")
    with cupy.cuda.Device(1):
        elsewhere = cupy.asarray(SCORES)
    for given in (elsewhere, torch.from_numpy(SCORES).to("cuda:1")):
        assert_same(cuda.fit_mixtures(given, KEYS, SETTINGS, {}), whole)
    monkeypatch.setattr(gpu._shared, "n_devices", 2)
    assert_same(cuda.fit_mixtures(SCORES, KEYS, SETTINGS, {}), whole)


def test_starts_by_cuml_lead_to_fits(cupy: Any) -> None:
    pytest.importorskip("cuml")
    scores = scores_of(2, 20_000)
    starts = cuda.cuml_labels(scores, KEYS[:2], SETTINGS)
    found = cuda.fit_mixtures(scores, KEYS[:2], SETTINGS, starts)
    assert found.converged.any()
    assert pca_on_device(maps_of(1), solver="cuml").scores.shape == (1, 500, 2)


def gmmcnn(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "gmmcnn", *arguments],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip


def test_the_command_line_fits_on_the_device_and_keeps_its_kernels(cupy: Any, tmp_path: Path) -> None:
    kept = tmp_path / "kernels"
    done = gmmcnn(
        "engine=cuda", "data=digits", "model=lenet5", "train.epochs=1", f"run={tmp_path / 'run'}",
        CUPY_CACHE_DIR=str(kept),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list(kept.glob("*.cubin"))
    assert (tmp_path / "run" / "filters.csv").is_file()


def test_a_cache_that_cannot_be_written_is_told_with_what_to_do(cupy: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = gmmcnn(
        "engine=cuda", "data=digits", f"run={tmp_path / 'run'}", CUPY_CACHE_DIR=str(tmp_path / "file" / "folder")
    )
    assert done.returncode == 1
    assert "CUPY_CACHE_DIR" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_device_is_told_by_the_command_line(cupy: Any, tmp_path: Path) -> None:
    done = gmmcnn("engine=cuda", "device=cpu", "data=digits", f"run={tmp_path / 'run'}", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1
    assert "CUDA_VISIBLE_DEVICES" in done.stderr
