"""Compile kernels for an architecture as CuPy would, with no device and no driver, and read what the assembler reports.

NVRTC comes with ``pip install cupy-cuda13x nvidia-cuda-nvrtc``; ``make kernels`` does that, in a folder of its own.
"""

import re
from dataclasses import dataclass

from gmmcnn.hardware import kernel_loader

ARCHITECTURES = (75, 80, 90, 100, 120)
CUPYS_OWN_OPTIONS = ("-ftz=true", "--device-as-default-execution-space")


@dataclass(frozen=True)
class Resources:
    """What one kernel takes of a multiprocessor, calls included."""

    registers: int
    spill_bytes: int
    static_shared_bytes: int


def compile_source(text: str, options: tuple[str, ...], architecture: int) -> dict[str, Resources]:
    """Resources by kernel name; RuntimeError with the compiler's log where it fails or warns."""
    from cupy_backends.cuda.libs import nvrtc

    program = nvrtc.createProgram(text, "kernel.cu", (), ())
    try:
        everything = (*options, *CUPYS_OWN_OPTIONS, f"-arch=sm_{architecture}", "--ptxas-options=-v")
        try:
            nvrtc.compileProgram(program, everything)
        except nvrtc.NVRTCError as error:
            raise RuntimeError(nvrtc.getProgramLog(program)) from error
        log = nvrtc.getProgramLog(program)
        assert nvrtc.getCUBIN(program)
    finally:
        nvrtc.destroyProgram(program)
    if "warning" in log:
        raise RuntimeError(log)
    return _read(log)


def compile_file(file: str, macros: dict[str, int | str], architecture: int) -> dict[str, Resources]:
    """The same for a file in ``kernels/``."""
    return compile_source(kernel_loader.source(file), kernel_loader.options(**macros), architecture)


def compile_as_cupy(file: str, macros: dict[str, int | str], architecture: int) -> bytes:
    """Binary of a file in ``kernels/``, by CuPy's own function with all that it adds; only the device is pretended."""
    from cupy.cuda import compiler

    for_this_device = compiler._get_arch_for_options_for_nvrtc
    compiler._get_arch_for_options_for_nvrtc = lambda arch=None: (f"-arch=sm_{arch}", "cubin")
    try:
        options = (*kernel_loader.options(**macros), "-ftz=true")  # which CuPy adds a function further out
        return compiler.compile_using_nvrtc(
            kernel_loader.source(file), options, str(architecture), f"{file}.cu", cache_in_memory=True
        )[0]
    finally:
        compiler._get_arch_for_options_for_nvrtc = for_this_device


def _read(log: str) -> dict[str, Resources]:
    found = {}
    for part in re.split(r"Compiling entry function ", log)[1:]:
        name = re.match(r"'(\w+)'", part)
        registers, shared = re.search(r"Used (\d+) registers", part), re.search(r"(\d+) bytes smem", part)
        spills = sum(int(n) for n in re.findall(r"(\d+) bytes spill", part))
        assert name
        assert registers
        found[name[1]] = Resources(int(registers[1]), spills, int(shared[1]) if shared else 0)
    return found
