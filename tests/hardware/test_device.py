"""Where networks run. What needs a GPU is marked so; the rest shows what is said where there is none."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import nn

from gmmcnn.errors import EngineError, EngineWarning
from gmmcnn.hardware import device

CUDA = torch.device("cuda")


def on_gpu(test: Callable) -> Callable:
    skip = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    return pytest.mark.gpu(skip(test))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.device]]:
    """Two CUDA devices, as torch would speak of them; what is made current is listed."""
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(torch, "arange", lambda n, device: torch.tensor(range(n)))
    device._why_broken.cache_clear()
    device._warn_once.cache_clear()
    yield current
    device._why_broken.cache_clear()
    device._warn_once.cache_clear()


def test_without_a_device_auto_is_the_cpu_and_cuda_says_what_to_do(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert device.chosen("auto") == device.chosen("cpu") == torch.device("cpu")
    said = "device=cuda: torch sees no CUDA device; CUDA_VISIBLE_DEVICES='' .*; or use device=cpu"
    with pytest.raises(EngineError, match=said):
        device.chosen("cuda")
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    with pytest.raises(EngineError, match=r"device=cuda:1: this build of torch \(.*\) has no CUDA: install one"):
        device.chosen("cuda:1")


def test_one_of_several_devices_is_made_the_current_one(seen):
    assert device.chosen("auto") == device.chosen("cuda") == CUDA
    assert seen == []
    assert device.chosen("cuda:1") == torch.device("cuda", 1)
    assert seen == [torch.device("cuda", 1)]
    with pytest.raises(EngineError, match="device=cuda:2: torch sees 2 CUDA devices, counted from cuda:0"):
        device.chosen("cuda:2")


def test_a_device_that_fails_is_an_error_for_cuda_and_a_warning_for_auto(seen, monkeypatch):
    def busy(n, device):
        raise torch.AcceleratorError("CUDA error: all CUDA-capable devices are busy\nand more")

    monkeypatch.setattr(torch, "arange", busy)
    with pytest.raises(EngineError, match=r"device=cuda: the CUDA device cannot be used .*busy.*nvidia-smi"):
        device.chosen("cuda")
    with pytest.warns(EngineWarning, match="device=auto: .*busy.*the network runs on the CPU"):
        assert device.chosen("auto") == torch.device("cpu")
    assert device.chosen("auto") == torch.device("cpu")  # said once


def test_wrong_results_are_noticed(seen, monkeypatch):
    monkeypatch.setattr(torch, "arange", lambda n, device: torch.ones(5, dtype=torch.int64))
    with pytest.raises(EngineError, match="computes wrong results"):
        device.chosen("cuda")


def test_a_module_is_where_its_parameters_are():
    assert device.device_of(nn.ReLU()) == torch.device("cpu")
    assert device.device_of(nn.Linear(2, 2, device="meta")) == torch.device("meta")


def test_batches_come_in_order_one_at_a_time():
    asked = []

    def batches():
        for n in range(3):
            asked.append(n)
            yield torch.full((2,), n), torch.tensor([n])

    for n, (images, labels) in enumerate(device.uploaded(batches(), torch.device("cpu"))):
        assert (images.tolist(), labels.tolist()) == ([n, n], [n])
        assert asked == list(range(n + 1))
    [(elsewhere,)] = device.uploaded([(torch.ones(3),)], torch.device("meta"))
    assert elsewhere.is_meta


def test_a_copy_is_not_changed_by_what_comes_next():
    maps = torch.arange(6.0, dtype=torch.float64).reshape(2, 3)
    copy = device.host_copy(maps.T)
    maps.zero_()
    assert copy().dtype == np.float32
    assert copy().flags.c_contiguous
    np.testing.assert_array_equal(copy(), [[0, 3], [1, 4], [2, 5]])


@on_gpu
def test_on_a_device_batches_arrive_whole_while_the_one_before_is_worked_on():
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(64, 3, 64, 64, generator=generator), torch.tensor([n])) for n in range(20)]
    sums = []
    for images, number in device.uploaded(batches, CUDA):
        assert images.is_cuda
        for _ in range(5):
            images = images * 2  # keeps the device busy, and takes memory that might still be written to
        sums.append((images.double().sum() / 32, number))
    for n, (total, number) in enumerate(sums):
        assert int(number) == n
        assert float(total) == pytest.approx(float(batches[n][0].double().sum()), rel=1e-6, abs=1e-3)
    [(pinned,)] = device.uploaded([(torch.ones(3).pin_memory(),)], CUDA)
    [(there,)] = device.uploaded([(pinned,)], CUDA)
    assert there.tolist() == [1, 1, 1]


@on_gpu
def test_on_a_device_a_copy_is_not_changed_by_what_comes_next():
    maps = torch.arange(2.0**22, device=CUDA).reshape(2**10, 2**12)
    expected, copies = maps.T.cpu().numpy().copy(), []
    for _ in range(4):
        copies.append(device.host_copy(maps.T))
        maps += 1
    for n, copy in enumerate(copies):
        np.testing.assert_array_equal(copy(), expected + n)


@on_gpu
def test_a_device_has_a_title():
    assert re.fullmatch(r"cuda:\d+, .+", device.title(device.chosen("auto")))
    device.wait(CUDA)


def test_a_gpu_run_in_which_no_test_passed_fails():
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", __file__]
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=hidden, capture_output=True, text=True, check=False)
    assert "skipped" in done.stdout
    assert "passed" not in done.stdout
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
