"""The device that kernel tests run on: fibers on this CPU, and a real one where pytest's ``-m gpu`` asks for it."""

from collections.abc import Iterator
from typing import Any

import pytest
from cuda_shim import fake_cupy

from gmmcnn.hardware import gpu, kernel_loader


@pytest.fixture(params=["fibers", pytest.param("device", marks=pytest.mark.gpu)])
def cupy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """CuPy, or what stands in for it."""
    if request.param == "fibers":
        yield from _emulated(monkeypatch)
        return
    reason = gpu.why_unavailable()
    if reason and request.config.option.markexpr == "gpu":
        pytest.fail(f"a GPU run without a GPU: {reason}")
    if reason:
        pytest.skip(reason)
    import cupy

    yield cupy  # noqa: PT022 - the other way has one


@pytest.fixture
def fibers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """CuPy's stand-in over fibers, for what only an emulated device can show."""
    yield from _emulated(monkeypatch)


def _emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Fibers in CuPy's place; their kernels are forgotten afterwards, lest a real device's tests run them."""
    try:
        yield fake_cupy.install(monkeypatch)
    finally:
        kernel_loader.clear()
