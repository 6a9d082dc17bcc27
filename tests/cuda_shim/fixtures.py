"""The device that kernel tests run on: fibers on this CPU, and a real one where pytest's ``-m gpu`` asks for it."""

from typing import Any

import pytest
from cuda_shim import fake_cupy

from gmmcnn.hardware import gpu


@pytest.fixture(params=["fibers", pytest.param("device", marks=pytest.mark.gpu)])
def cupy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """CuPy, or what stands in for it."""
    if request.param == "fibers":
        return fake_cupy.install(monkeypatch)
    reason = gpu.why_unavailable()
    if reason and request.config.option.markexpr == "gpu":
        pytest.fail(f"a GPU run without a GPU: {reason}")
    if reason:
        pytest.skip(reason)
    import cupy

    return cupy


@pytest.fixture
def fibers(monkeypatch: pytest.MonkeyPatch) -> Any:
    """CuPy's stand-in over fibers, for what only an emulated device can show."""
    return fake_cupy.install(monkeypatch)
