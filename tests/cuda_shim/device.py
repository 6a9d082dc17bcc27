"""A CUDA device made of fibers: compiles a .cu file's unmodified text with g++ and launches it over NumPy arrays.

``RawModule(code=..., options=...).get_function(name)(grid, block, args, shared_mem=...)`` is the face of
``cupy.RawModule``.
``cuda_shim.h`` holds the CUDA that the kernels use, ``runtime.cpp`` the fibers and the check mode.
"""

import ctypes
import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
CACHE = Path(tempfile.gettempdir()) / f"gmmcnn-cuda-shim-{os.getuid()}"
SHARED_CAPACITY = 232448  # bytes a block may ask for on sm_90, the most of any architecture
SCHEDULES = ("fifo", "lifo", "random")
CODES = {"f": np.float32, "d": np.float64, "i": np.int32, "I": np.uint32, "q": np.int64, "Q": np.uint64, "b": np.int8,
         "B": np.uint8, "h": np.int16, "H": np.uint16, "?": np.bool_}  # fmt: skip


class KernelError(RuntimeError):
    """A kernel did what no device forgives: race, divergent barrier, access out of bounds, read of unwritten memory."""


@dataclass(frozen=True)
class Settings:
    schedule: str = "fifo"
    seed: int = 0
    check: bool = False
    shared_limit: int = SHARED_CAPACITY
    workers: int = os.cpu_count() or 1


_settings = Settings()
launches: list[str] = []
"""Names of the kernels launched so far."""


@contextmanager
def device(**changes: object) -> Iterator[None]:
    """Run the block's launches under other settings."""
    global _settings
    before = _settings
    _settings = replace(before, **changes)
    try:
        yield
    finally:
        _settings = before


class RawModule:
    """Compiled kernels of one source text."""

    def __init__(self, code: str, options: Sequence[str] = (), **_: object) -> None:
        self.code, self.options = code, tuple(option for option in options if option.startswith("-D"))
        self._names = re.findall(
            r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\s*\(', code
        )

    def compile(self) -> None:
        _library(self.code, self.options, tuple(self._names), _settings.check)

    def get_function(self, name: str) -> "Kernel":
        if name not in self._names:
            raise KeyError(f"{name}: the source has the kernels {self._names}")
        return Kernel(self, name)


class Kernel:
    """One ``extern "C" __global__`` function."""

    def __init__(self, module: RawModule, name: str) -> None:
        self.module, self.name = module, name
        self.max_dynamic_shared_size_bytes = 48 * 1024  # as on a device: more must be asked for
        self.max_threads_per_block = 1024

    def __call__(
        self, grid: Sequence[int], block: Sequence[int], args: Sequence[object], *, shared_mem: int = 0
    ) -> None:
        library = _library(self.module.code, self.module.options, tuple(self.module._names), _settings.check)
        _check_launch(self, grid, block, shared_mem)
        arguments = _Arguments(self.name, _signature(library, self.name), args)
        message = ctypes.create_string_buffer(512)
        failed = library.shim_launch(
            getattr(library, f"shim_call_{self.name}"), arguments.pointers, _three(grid), _three(block),
            ctypes.c_size_t(shared_mem), SCHEDULES.index(_settings.schedule),
            _settings.seed, int(_settings.check), _settings.workers, len(arguments.arrays), arguments.bases,
            arguments.sizes, arguments.writable, message,
        )  # fmt: skip
        launches.append(self.name)
        if failed:
            raise KernelError(f"{self.name}: {_with_source_line(message.value.decode(), library._name)}")


def _check_launch(kernel: Kernel, grid: Sequence[int], block: Sequence[int], shared_mem: int) -> None:
    threads = int(np.prod(block))
    if threads > kernel.max_threads_per_block or threads % 32:
        raise ValueError(f"{kernel.name}: {threads} threads a block; expected a multiple of 32, at most 1024")
    if shared_mem > kernel.max_dynamic_shared_size_bytes or shared_mem > _settings.shared_limit:
        raise ValueError(
            f"{kernel.name}: {shared_mem} bytes of shared memory, but {kernel.max_dynamic_shared_size_bytes} were "
            f"opted in to and the device has {_settings.shared_limit}"
        )
    limits = (2**31 - 1, 65535, 65535)
    if any(not 0 < size <= limit for size, limit in zip(grid, limits, strict=False)):
        raise ValueError(f"{kernel.name}: grid {tuple(grid)} is empty or too large")


class _Arguments:
    """Checks arguments against the kernel's parameters and holds what the launch needs of them."""

    def __init__(self, name: str, signature: str, args: Sequence[object]) -> None:
        parameters = [signature[i : i + 2] for i in range(0, len(signature), 2)]
        if len(args) != len(parameters):
            raise TypeError(f"{name}: {len(args)} arguments, expected {len(parameters)}")
        self.arrays: list[np.ndarray] = []
        self._values: list[np.ndarray] = []
        writable = []
        for position, ((kind, code), arg) in enumerate(zip(parameters, args, strict=True)):
            dtype = np.dtype(CODES[code])
            if kind == "s":
                if not isinstance(arg, np.generic) or arg.dtype != dtype:
                    raise TypeError(
                        f"{name}: argument {position} is {arg!r} ({type(arg).__name__}), expected a {dtype} scalar"
                    )
                self._values.append(np.array(arg))
                continue
            if arg is None:
                self._values.append(np.zeros(1, np.uintp))
                continue
            if not isinstance(arg, np.ndarray) or arg.dtype != dtype or not arg.flags.c_contiguous:
                found = f"{arg.dtype} array" if isinstance(arg, np.ndarray) else type(arg).__name__
                raise TypeError(f"{name}: argument {position} is a {found}, expected a contiguous {dtype} array")
            if kind == "w" and not arg.flags.writeable:
                raise ValueError(f"{name}: argument {position} is written to but read-only")
            self._values.append(np.array(arg.ctypes.data, np.uintp))
            self.arrays.append(arg)
            writable.append(kind == "w")
        self.pointers = (ctypes.c_void_p * len(args))(*[value.ctypes.data for value in self._values])
        count = len(self.arrays)
        self.bases = (ctypes.c_void_p * count)(*[array.ctypes.data for array in self.arrays])
        self.sizes = (ctypes.c_size_t * count)(*[array.nbytes for array in self.arrays])
        self.writable = (ctypes.c_ubyte * count)(*writable)


def _three(sizes: Sequence[int]) -> ctypes.Array:
    return (ctypes.c_uint * 3)(*sizes, *[1] * (3 - len(sizes)))


def _signature(library: ctypes.CDLL, name: str) -> str:
    """Two letters a parameter: s(calar), r(ead-only pointer) or w(ritable pointer), and the type code."""
    out = ctypes.create_string_buffer(256)
    getattr(library, f"shim_signature_{name}")(out)
    return out.value.decode()


FLAGS = (
    "-std=gnu++20", "-O2", "-g1", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique", "-fno-extern-tls-init",
    "-ffp-contract=off", "-march=native", "-U_FORTIFY_SOURCE", "-Wno-attributes", "-Wno-unknown-pragmas", f"-I{HERE}",
)  # fmt: skip
CHECK_FLAGS = ("-fsanitize=thread,alignment,bounds,shift,integer-divide-by-zero", "-O1")


@cache
def _library(code: str, options: tuple[str, ...], names: tuple[str, ...], check: bool) -> ctypes.CDLL:
    tail = f"""
#line 1 "shim"
thread_local unsigned char shared_memory[{SHARED_CAPACITY + 1024}] __attribute__((aligned(16)));
unsigned char* shim_dynamic_shared() {{ return shared_memory; }}
""" + "".join(f"SHIM_KERNEL({name})\n" for name in names)
    flags = (*FLAGS, *(CHECK_FLAGS if check else ()), *options)
    source = '#include "cuda_shim.h"\n#line 1 "kernel.cu"\n' + code + tail
    built = CACHE / f"{_hash(source, *flags, (HERE / 'cuda_shim.h').read_text())}-{_runtime().stem}.so"
    if not built.exists():
        _build(["g++", *flags, "-x", "c++", "-c", "-"], source, built.with_suffix(".o"))
        partial = built.with_suffix(f".{os.getpid()}")
        _run(["g++", "-shared", "-pthread", str(built.with_suffix(".o")), str(_runtime()), "-o", str(partial)])
        partial.rename(built)
    return ctypes.CDLL(str(built))


@cache
def _runtime() -> Path:
    source = (HERE / "runtime.cpp").read_text()
    built = CACHE / f"{_hash(source, *FLAGS, (HERE / 'cuda_shim.h').read_text())}.o"
    if not built.exists():
        CACHE.mkdir(exist_ok=True)
        _build(["g++", *FLAGS, "-x", "c++", "-c", "-"], source, built)
    return built


def _build(command: list[str], source: str, target: Path) -> None:
    partial = target.with_suffix(f".{os.getpid()}")
    _run([*command, "-o", str(partial)], source)
    partial.rename(target)


def _run(command: list[str], text: str | None = None) -> None:
    done = subprocess.run(command, input=text, text=True, capture_output=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


def _with_source_line(message: str, library: str) -> str:
    """Replace the ``@address`` of a reported access by its source line."""
    found = re.search(r" @(0x[0-9a-f]+)$", message)
    if not found:
        return message
    line = subprocess.run(["addr2line", "-e", library, found[1]], text=True, capture_output=True).stdout.strip()
    return f"{message[: found.start()]} ({line.rsplit('/', 1)[-1]})"
