"""Both CUDA compilers accept every kernel, for every architecture, without a spill; they need no device.

NVRTC gets the very strings and options that CuPy would hand it. Where it is not installed these tests skip, unless
GMMCNN_REQUIRE_NVRTC=1 says that it must be there (``make kernels`` does).
"""

import importlib.util
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import as_file, files
from pathlib import Path

import pytest
from cuda_shim import nvrtc

from gmmcnn.hardware import kernel_loader
from gmmcnn.mixture import cuda

FLOAT = {"REAL": "float", "SCORE": "float"}
RESIDENT, STREAMED = {"RESIDENT": 1, "MAX_K": 16}, {"RESIDENT": 0, "MAX_K": 32}

# Register bounds: what the launch bounds ask for at d ≤ 2, else a quarter more than the compilers of 2026 need, so that
# a change which costs occupancy is seen.
FIT = [
    ({**FLOAT, **RESIDENT, "DIMS": 2}, 64),
    ({**FLOAT, **STREAMED, "DIMS": 2}, 80),
    ({**FLOAT, **RESIDENT, "DIMS": 1}, 64),
    ({**FLOAT, **STREAMED, "DIMS": 4}, 128),
    ({**FLOAT, **RESIDENT, "DIMS": 8}, 208),
]
FIT_ON_ONE_ARCHITECTURE = [
    ({**FLOAT, **RESIDENT, "DIMS": 3}, 128),
    ({**FLOAT, **STREAMED, "DIMS": 5}, 160),
    ({**FLOAT, **RESIDENT, "DIMS": 6}, 176),
    ({**FLOAT, **STREAMED, "DIMS": 7}, 192),
    ({"REAL": "double", "SCORE": "double", **RESIDENT, "DIMS": 2}, 144),
]
OTHERS = [
    ("activation", {"REAL": "float"}, 40),
    ("calinski_harabasz", {"REAL": "float", "DIMS": 2}, 64),
    ("calinski_harabasz", {"REAL": "float", "DIMS": 8}, 128),
    ("pca", {"REAL": "float", "COLUMNS": 8}, 96),
    ("pca", {"REAL": "float", "COLUMNS": 12}, 128),
    ("pca", {"REAL": "float", "COLUMNS": 16}, 160),
]

needs_nvrtc = pytest.mark.skipif(
    importlib.util.find_spec("cupy_backends") is None and os.environ.get("GMMCNN_REQUIRE_NVRTC") != "1",
    reason="NVRTC is not installed; remedy: make kernels",
)


def check(file: str, macros: dict[str, int | str], bound: int, architecture: int) -> None:
    for name, resources in nvrtc.compile_file(file, macros, architecture).items():
        where = f"{name} for sm_{architecture} with {macros}: {resources}"
        assert resources.spill_bytes == 0, where
        assert resources.registers <= bound, where
        if name == "fit_mixtures":  # what the engine plans with is what the compiler lays out
            planned = cuda.static_bytes(int(macros["DIMS"]), int(macros["MAX_K"]), "float32")
            assert macros["REAL"] == "double" or abs(resources.static_shared_bytes - planned) <= 64, where


@needs_nvrtc
@pytest.mark.parametrize("architecture", nvrtc.ARCHITECTURES)
def test_nvrtc_compiles_every_kernel_without_a_spill(architecture: int) -> None:
    work = [("gmm_em", *variant, architecture) for variant in FIT] + [(*other, architecture) for other in OTHERS]
    if architecture == 90:
        work += [("gmm_em", *variant, architecture) for variant in FIT_ON_ONE_ARCHITECTURE]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for finished in [pool.submit(check, *item) for item in work]:
            finished.result()


@needs_nvrtc
@pytest.mark.parametrize("architecture", [75, 90])  # which every NVRTC from 12.4 on knows
@pytest.mark.parametrize(("file", "macros"), [("gmm_em", FIT[0][0]), *((file, macros) for file, macros, _ in OTHERS)])
def test_cupy_compiles_every_file_with_the_options_that_it_adds(
    file: str, macros: dict[str, int | str], architecture: int
) -> None:
    binary = nvrtc.compile_as_cupy(file, macros, architecture)
    assert binary.startswith(b"\x7fELF")


@needs_nvrtc
def test_an_option_given_twice_is_what_older_compilers_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    from cupy_backends.cuda.libs import nvrtc as compiler

    if compiler.getVersion() >= (12, 9):
        pytest.skip("this NVRTC takes an option twice")
    monkeypatch.setattr(kernel_loader, "COMPILER_OPTIONS", ("-std=c++17", "--device-as-default-execution-space"))
    with pytest.raises(Exception, match="defined more than once"):
        nvrtc.compile_as_cupy("calinski_harabasz", {"REAL": "float", "DIMS": 2}, 90)


@needs_nvrtc
def test_a_spill_and_a_warning_would_be_seen() -> None:
    tight = kernel_loader.source("gmm_em").replace("MAX_THREADS, MIN_BLOCKS) fit_mixtures", "1024, 2) fit_mixtures")
    found = nvrtc.compile_source(tight, kernel_loader.options(**FLOAT, **STREAMED, DIMS=8), 90)
    assert found["fit_mixtures"].spill_bytes > 0
    with pytest.raises(RuntimeError, match="was declared but never referenced"):
        nvrtc.compile_source("constexpr int UNUSED = 1; __global__ void f() { int unused; }", (), 90)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on this machine")
@pytest.mark.parametrize("file", ["gmm_em", "pca", "calinski_harabasz", "activation"])
def test_nvcc_compiles_every_file_alone_with_warnings_as_errors(file: str, tmp_path: Path) -> None:
    with as_file(files("gmmcnn.kernels")) as folder:
        command = ["nvcc", "-std=c++17", "-Werror", "all-warnings", "-cubin", "-arch=sm_90", str(folder / f"{file}.cu")]
        done = subprocess.run([*command, "-o", str(tmp_path / "out.cubin")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
