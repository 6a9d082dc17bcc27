"""The host code of the decomposition on a device: blocks, sizes, errors, what does not converge. Emulated."""

import importlib.util
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cuda_shim import device as fiber_device
from cuda_shim.fixtures import fibers

from gmmcnn.constants import MAX_DIMS
from gmmcnn.errors import CaptureError, ConfigurationError
from gmmcnn.hardware import gpu
from gmmcnn.principal_components import cuda
from gmmcnn.principal_components.pca import pca
from gmmcnn.principal_components.reference import PCAResult

__all__ = ["fibers"]


def maps_of(n_filters: int, n_samples: int = 24, n_pixels: int = 10, dtype: str = "float32") -> np.ndarray:
    """Maps with a spectrum that falls quickly."""
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(n_filters, n_samples, 4)) * 2.0 ** -np.arange(4)
    noise = 0.01 * rng.normal(size=(n_filters, n_samples, n_pixels))
    return (factors @ rng.normal(size=(n_filters, 4, n_pixels)) + noise).astype(dtype)


def assert_same(one: PCAResult, other: PCAResult, rtol: float = 0) -> None:
    for name, array in vars(one).items():
        np.testing.assert_allclose(array, getattr(other, name), rtol=rtol, atol=rtol, err_msg=name)
        assert array.dtype == getattr(other, name).dtype, name


def test_the_engine_cuda_is_this_one(fibers: Any) -> None:
    maps = maps_of(2)
    gpu.require()  # tries the device once
    fiber_device.launches.clear()
    assert_same(pca(maps, engine="cuda"), cuda.pca_on_device(maps, 2))
    assert fiber_device.launches[:3] == ["column_means", "backproject", "rotate"]
    assert len(set(fiber_device.launches)) == 4


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equals_the_reference(fibers: Any, dtype: str) -> None:
    maps = maps_of(2, dtype=dtype)
    found, expected = cuda.pca_on_device(maps, 2), pca(maps, 2, engine="reference")
    assert found.scores.dtype == dtype
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4 * expected.scores.std())
    np.testing.assert_allclose(found.explained_variance, expected.explained_variance, rtol=1e-4)
    assert (found.residual <= cuda.TOLERANCE[dtype]).all()


def test_no_result_depends_on_the_blocks(fibers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = maps_of(5)
    whole = cuda.pca_on_device(maps, 2)
    per_filter = cuda.bytes_per_filter(24, 10, 2, 4)
    monkeypatch.setattr(gpu, "_free_bytes", lambda _: 2.5 * per_filter / gpu.FREE_MEMORY_SHARE)
    fiber_device.launches.clear()
    assert_same(cuda.pca_on_device(maps, 2), whole)
    assert fiber_device.launches.count("column_means") == 3
    assert_same(cuda.pca_on_device(fibers.asarray(maps), 2), whole)


def test_other_types_become_float32(fibers: Any) -> None:
    whole = (100 * maps_of(1)).astype(np.int16)
    assert_same(cuda.pca_on_device(whole, 2), cuda.pca_on_device(whole.astype(np.float32), 2))
    assert cuda.pca_on_device(whole, 2).scores.dtype == np.float32


def test_columns_beyond_the_rank_are_zero(fibers: Any) -> None:
    found = cuda.pca_on_device(maps_of(2, n_samples=24, n_pixels=2), 4)
    assert not found.scores[:, :, 2:].any()
    assert not found.explained_variance[:, 2:].any()
    assert found.scores[:, :, :2].any(axis=1).all()


def test_what_does_not_converge_is_decomposed_exactly(fibers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = maps_of(3)
    exact, calls = cuda.exact_pca, []
    monkeypatch.setattr(cuda, "MAX_ROUNDS", 0)
    monkeypatch.setattr(cuda, "exact_pca", lambda *arguments: calls.append(1) or exact(*arguments))
    found = cuda.pca_on_device(maps, 2)
    assert calls == [1, 1, 1]
    expected = pca(maps, 2, engine="reference")
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-6, atol=1e-6)
    assert found.residual.max() < 1e-12


def test_rounds_end_when_all_filters_are_done_and_that_is_asked_now_and_then(
    fibers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fiber_device.launches.clear()
    cuda.pca_on_device(maps_of(2), 2)
    rounds = fiber_device.launches.count("project")
    assert 0 < rounds < cuda.MAX_ROUNDS
    assert rounds % cuda.CHECK_ROUNDS == 0


def test_no_filters_at_all(fibers: Any) -> None:
    found = cuda.pca_on_device(maps_of(1)[:0], 3)
    assert (found.scores.shape, found.explained_variance.shape, found.residual.shape) == ((0, 24, 3), (0, 3), (0,))


@pytest.mark.parametrize(
    ("maps", "arguments", "error", "message"),
    [
        (np.zeros((3, 4)), {}, ValueError, r"shape \(3, 4\): expected \(F, N, P\)"),
        (np.zeros((3, 0, 4)), {}, ValueError, r"shape \(3, 0, 4\)"),
        (np.zeros((1, 5, 4)), {"n_components": 0}, ConfigurationError, "n_components=0: engine=cuda serves 1 to 8"),
        (np.zeros((1, 5, 4)), {"n_components": MAX_DIMS + 1}, ConfigurationError, "n_components=9: .*engine=cpu"),
        (np.zeros((1, 5, 4)), {"solver": "fast"}, ConfigurationError, "solver='fast': expected one of auto, kernels"),
    ],
)
def test_impossible_requests_are_named(fibers: Any, maps, arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        cuda.pca_on_device(maps, **arguments)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_filter_is_named_by_its_number_in_the_whole(fibers: Any, monkeypatch: pytest.MonkeyPatch, bad: float) -> None:
    maps = maps_of(5)
    maps[3, 7, 1] = bad
    monkeypatch.setattr(gpu, "_free_bytes", lambda _: 2.5 * cuda.bytes_per_filter(24, 10, 2, 4) / gpu.FREE_MEMORY_SHARE)
    with pytest.raises(CaptureError, match="filter 3, sample 7 hold NaN or infinity"):
        cuda.pca_on_device(maps, 2)


def test_columns_of_the_basis_come_in_fours_with_six_to_spare() -> None:
    assert [cuda.n_columns(d) for d in range(1, MAX_DIMS + 1)] == [8, 8, 12, 12, 12, 12, 16, 16]


def test_memory_is_counted_array_by_array() -> None:
    n, p, d, columns, chunks = 2000, 30, 2, 8, 2
    maps, means, basis_and_image, partial = n * p, p, 2 * p * columns, chunks * p * columns
    numbers = 2 * maps + means + basis_and_image + partial + n * columns + n * d
    assert cuda.bytes_per_filter(n, p, d, 4) == 4 * numbers + 1024
    assert cuda.bytes_per_filter(n, p, d, 8) == 8 * numbers + 1024


@pytest.mark.parametrize(
    ("n_samples", "n_pixels", "preferred"),
    [
        (2**20, 256, True),
        (2**20 - 1, 256, False),  # too small to fill a device
        (2**28, 1, False),  # cuML wants two features
        (2**27, 2, True),
        (2**16, 4096, True),
        (2**16, 4097, False),  # a covariance too large
        (2**13, 2**15, False),  # more pixels than samples
    ],
)
def test_cuml_is_for_single_large_problems_of_few_pixels(
    monkeypatch: pytest.MonkeyPatch, n_samples: int, n_pixels: int, preferred: bool
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(name=name))
    assert cuda.prefers_cuml(n_samples, n_pixels) == preferred
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not cuda.prefers_cuml(n_samples, n_pixels)
