"""The CUDA engine as a whole, host code included, on the emulated device (and on a real one with ``pytest -m gpu``)."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from cuda_shim import device as fiber_device
from cuda_shim import fake_cupy
from cuda_shim.fixtures import cupy, fibers
from torch import nn

from gmmcnn.data import Splits
from gmmcnn.errors import CaptureError, ConvergenceWarning, EngineError
from gmmcnn.hardware import gpu
from gmmcnn.mixture import cpu, cuda, reference
from gmmcnn.mixture.initialise import kmeans_labels
from gmmcnn.mixture.problem import MixtureSettings, SweepResult
from gmmcnn.mixture.sweep import GaussianMixtureSweep
from gmmcnn.principal_components.pca import pca

__all__ = ["cupy", "fibers"]


def scores_of(n_filters: int, n_samples: int = 150, n_dims: int = 2, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(n_filters, 3, n_dims)) * 4
    group = rng.integers(0, 3, (n_filters, n_samples))
    noise = rng.normal(size=(n_filters, n_samples, n_dims))
    return (centres[np.arange(n_filters)[:, None], group] + noise).astype(np.float32)


def keys_of(n_filters: int) -> np.ndarray:
    return np.arange(n_filters, dtype=np.uint64) + 7


def assert_same(one: SweepResult, other: SweepResult) -> None:
    for name, array in vars(one).items():
        assert np.array_equal(array, getattr(other, name), equal_nan=array.dtype.kind == "f"), name
        assert array.dtype == getattr(other, name).dtype, name


@pytest.fixture(scope="module")
def lenet_scores(_fashion_lenet5: nn.Module, fashion_mnist: Splits) -> np.ndarray:
    """PCA scores (F, 200, 2) of the live convolution filters of a trained LeNet-5, in two probe batches."""
    maps: list[np.ndarray] = []
    convolutions = [module for module in _fashion_lenet5.modules() if isinstance(module, nn.Conv2d)]
    hooks = [c.register_forward_hook(lambda _m, _i, out: maps.append(out.relu().numpy())) for c in convolutions]
    with torch.no_grad():
        _fashion_lenet5.eval()(fashion_mnist.train.images[:400])
    for hook in hooks:
        hook.remove()
    filters = [layer.transpose(1, 0, 2, 3).reshape(layer.shape[1] * 2, 200, -1) for layer in maps]
    scores = np.concatenate([pca(layer, 2, engine="cpu").scores for layer in filters])
    assert len(scores) >= 40
    return scores


@pytest.mark.fashion_mnist
def test_real_scores_from_the_same_start_as_the_cpu_engine(cupy: Any, lenet_scores: np.ndarray) -> None:
    """Labels equal on at least 99.9 % of samples of converged fits, K on all, and lower bounds within 1e-4."""
    n_filters, n_samples, _ = lenet_scores.shape
    settings, keys = MixtureSettings(k_min=2, k_max=6), keys_of(n_filters)
    points = [reference.standardise(scores.astype(np.float64)) for scores in lenet_scores]
    given = {
        k: np.stack(
            [
                np.zeros(n_samples, np.int8)
                if s is None
                else kmeans_labels(s.points, k, 0, int(key), 0).astype(np.int8)
                for s, key in zip(points, keys, strict=True)
            ]
        )
        for k in settings.component_counts
    }
    on_cpu, on_cuda = (engine.fit_mixtures(lenet_scores, keys, settings, given) for engine in (cpu, cuda))
    assert np.array_equal(on_cuda.status, on_cpu.status)
    both = on_cpu.converged & on_cuda.converged
    assert both.mean() > 0.5
    assert np.abs(on_cuda.lower_bound - on_cpu.lower_bound)[both].max() <= 1e-4
    assert (on_cuda.n_components == on_cpu.n_components).mean() >= 0.999
    assert (on_cuda.labels == on_cpu.labels).mean() >= 0.999


@pytest.mark.fashion_mnist
def test_real_scores_from_its_own_start(cupy: Any, lenet_scores: np.ndarray) -> None:
    """The same random numbers: nearly all fits are those of the CPU engine, and on average they are no worse."""
    settings, keys = MixtureSettings(k_min=2, k_max=5), keys_of(len(lenet_scores))
    on_cpu, on_cuda = (engine.fit_mixtures(lenet_scores, keys, settings, {}) for engine in (cpu, cuda))
    difference = (on_cuda.lower_bound - on_cpu.lower_bound)[np.isfinite(on_cpu.lower_bound)]
    assert (np.abs(difference) <= 1e-4).mean() >= 0.97
    assert difference.mean() >= -1e-3


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_statuses_and_padding_are_the_references(cupy: Any, dtype: str) -> None:
    scores = scores_of(5).astype(dtype)
    scores[1] = 2.5  # dead
    scores[2] = scores[2, :1]
    scores[2, 0] += 1  # two distinct points, k_min = 3
    scores[3] = np.array([[0, 0], [1, 0], [0, 1]], dtype)[np.arange(150) % 3]  # no spread within
    settings = MixtureSettings(k_min=3, k_max=5, dtype=dtype)
    found = cuda.fit_mixtures(scores, keys_of(5), settings, {})
    expected = reference.fit_mixtures(scores, keys_of(5), settings, {})
    for name in ("status", "n_components", "labels", "n_iter", "converged"):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name
    for name in ("lower_bound", "calinski_harabasz", "weights", "means", "covariances"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-4, err_msg=name)


def test_no_filters_at_all(cupy: Any) -> None:
    settings = MixtureSettings(k_max=4)
    found = cuda.fit_mixtures(scores_of(1)[:0], keys_of(0), settings, {})
    assert_same(found, reference.fit_mixtures(scores_of(1)[:0], keys_of(0), settings, {}))


def test_runs_repeat_bit_for_bit(cupy: Any) -> None:
    settings = MixtureSettings(k_max=4, n_init=2)
    first, second = (cuda.fit_mixtures(scores_of(6), keys_of(6), settings, {}) for _ in range(2))
    assert_same(first, second)


def test_results_do_not_depend_on_blocks_of_filters(fibers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scores, settings = scores_of(7), MixtureSettings(k_max=3)
    labels = {3: np.random.default_rng(0).integers(0, 3, (7, 150)).astype(np.int8)}
    whole = cuda.fit_mixtures(scores, keys_of(7), settings, labels)
    n_bytes = cuda.bytes_per_filter(150, 2, settings)
    for filters_per_block in (1, 2, 3):
        monkeypatch.setattr(
            gpu, "_free_bytes", lambda _, n=filters_per_block: (n + 0.5) * n_bytes / gpu.FREE_MEMORY_SHARE
        )
        fiber_device.launches.clear()
        assert_same(cuda.fit_mixtures(scores, keys_of(7), settings, labels), whole)
        assert fiber_device.launches.count("fit_mixtures") == -(-7 // filters_per_block)


def test_a_subset_of_filters_in_another_order_has_the_same_results(fibers: Any) -> None:
    scores, keys, settings = scores_of(6), keys_of(6), MixtureSettings(k_max=3)
    whole, order = cuda.fit_mixtures(scores, keys, settings, {}), [4, 1, 3]
    part = cuda.fit_mixtures(scores[order], keys[order], settings, {})
    assert_same(part, SweepResult(*(array[order] for array in vars(whole).values())))


def test_out_of_memory_halves_the_block_until_it_fits(fibers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scores, settings = scores_of(8), MixtureSettings(k_max=3)
    whole = cuda.fit_mixtures(scores, keys_of(8), settings, {})
    monkeypatch.setattr(gpu, "_free_bytes", lambda _: 10**9)  # an estimate that other processes have overtaken
    fake_cupy.limits.total_bytes = fake_cupy.limits.in_use + 3 * cuda.bytes_per_filter(150, 2, settings)
    fiber_device.launches.clear()
    assert_same(cuda.fit_mixtures(scores, keys_of(8), settings, {}), whole)
    assert fiber_device.launches.count("fit_mixtures") > 1
    fake_cupy.limits.total_bytes = fake_cupy.limits.in_use + 1000
    with pytest.raises(EngineError, match=r"one filter needs about .* MiB of device memory"):
        cuda.fit_mixtures(scores, keys_of(8), settings, {})


def test_a_device_with_less_shared_memory_gives_the_same_bits(fibers: Any) -> None:
    """Whether samples lie in shared memory or come through the cache changes no sum and no order."""
    scores, settings = scores_of(2, 1100), MixtureSettings(k_max=3)
    compiled = cuda.macros(1100, 2, 3, "float32", gpu.shared_bytes_per_multiprocessor())
    assert compiled["RESIDENT"] == 1
    large = cuda.fit_mixtures(scores, keys_of(2), settings, {})
    fake_cupy.limits.multiprocessor_bytes = 32 * 1024
    assert cuda.macros(1100, 2, 3, "float32", gpu.shared_bytes_per_multiprocessor())["RESIDENT"] == 0
    assert_same(cuda.fit_mixtures(scores, keys_of(2), settings, {}), large)


def test_device_arrays_are_used_where_they_are(fibers: Any) -> None:
    scores, settings = scores_of(4), MixtureSettings(k_max=3)
    expected = cuda.fit_mixtures(scores, keys_of(4), settings, {})
    on_device = fibers.asarray(scores)
    on_device.flags.writeable = False  # whoever writes to the caller's array fails
    used_before = fake_cupy.limits.in_use
    assert_same(cuda.fit_mixtures(on_device, keys_of(4), settings, {}), expected)
    assert fake_cupy.limits.in_use == used_before
    sweep = GaussianMixtureSweep(k_max=3, engine="cuda").fit(on_device, keys=keys_of(4))
    assert np.array_equal(sweep.n_components_, expected.n_components)


class CudaTensor:
    """What the engine sees of a torch tensor in device memory."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor, self.shape, self.dtype, self.device = tensor, tensor.shape, tensor.dtype, torch.device("cuda", 0)
        self.__cuda_array_interface__ = {"version": 3}

    def __len__(self) -> int:
        return len(self.tensor)

    def __dlpack__(self, **keywords: Any) -> Any:
        return self.tensor.__dlpack__(**keywords)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.tensor.__dlpack_device__()


def test_torch_tensors_are_taken_without_a_copy_on_torchs_stream(fibers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scores, settings = scores_of(3), MixtureSettings(k_max=3)
    expected = cuda.fit_mixtures(scores, keys_of(3), settings, {})
    stream = type("Stream", (), {"cuda_stream": 4242})
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: stream)
    fake_cupy.external_streams.clear()
    assert_same(cuda.fit_mixtures(CudaTensor(torch.from_numpy(scores)), keys_of(3), settings, {}), expected)
    assert fake_cupy.external_streams == [4242]


def test_bad_device_arrays_are_named(fibers: Any) -> None:
    scores = scores_of(3)
    scores[2, 17, 1] = np.inf
    with pytest.raises(CaptureError, match="scores of filter 2, sample 17 hold NaN or infinity"):
        cuda.fit_mixtures(fibers.asarray(scores), keys_of(3), MixtureSettings(), {})
    with pytest.raises(ValueError, match=r"scores have shape \(3, 150\): expected \(F, N, d\)"):
        cuda.fit_mixtures(fibers.asarray(scores[..., 0]), keys_of(3), MixtureSettings(), {})
    with pytest.raises(ValueError, match="scores are int64: expected float32 or float64"):
        cuda.fit_mixtures(fibers.asarray(np.zeros((2, 5, 1), np.int64)), keys_of(2), MixtureSettings(), {})


def test_not_converging_is_a_warning(fibers: Any) -> None:
    with pytest.warns(ConvergenceWarning, match="max_iter=1"):
        GaussianMixtureSweep(k_max=3, max_iter=1, engine="cuda").fit(scores_of(2))


def test_auto_takes_the_device_where_one_answers(fibers: Any) -> None:
    gpu.require()  # tries the device once
    fiber_device.launches.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        GaussianMixtureSweep(k_max=3, engine="auto").fit(scores_of(2))
    assert fiber_device.launches == [
        "standardise", "fit_mixtures", "predict", "calinski_harabasz", "choose_n_components",
    ]  # fmt: skip


def test_no_device_is_a_loud_error_for_cuda_and_none_for_auto(fibers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cupy.limits.n_devices = 0
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(EngineError, match=r"no CUDA device answers .*CUDA_VISIBLE_DEVICES=''.*use engine=cpu"):
        GaussianMixtureSweep(engine="cuda").fit(scores_of(1))
    fiber_device.launches.clear()
    GaussianMixtureSweep(k_max=3, max_iter=1000, engine="auto").fit(scores_of(2))
    assert not fiber_device.launches


def test_without_cupy_the_error_names_the_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cupy", None)
    with pytest.raises(EngineError, match=r"install gmmcnn\[gpu-cu12\] or gmmcnn\[gpu-cu13\]"):
        GaussianMixtureSweep(engine="cuda").fit(scores_of(1))
    assert not gpu.is_available()
