"""The one place where ``kernels/*.cu`` become callables: splice, define, compile, memoise, clear.

Headers are spliced into the source as text, because CuPy's disk cache is keyed by the text it is given and would run
an old binary after a header was edited. ``#line`` keeps compiler messages pointing at the file a line came from. A
kernel is compiled when it is first asked for, once for each device and set of macros; CuPy keeps the binary on disk for
the next process.
"""

import re
from functools import cache
from importlib.resources import files
from typing import Any

COMPILER_OPTIONS = ("-std=c++17",)
"""No fast-math. CuPy adds ``-ftz=true``, with which float32 numbers below 1e-38 become zero, and
``--device-as-default-execution-space``, which NVRTC before 12.9 refuses when it is given twice."""

_INCLUDE = re.compile(r'^#include "(\w+\.cuh)"$', re.MULTILINE)


def kernel(file: str, name: str, **macros: int | str) -> Any:
    """A kernel on the current device.

    Parameters
    ----------
    file : str
        Name of a source in ``kernels/``, without ``.cu``.
    name : str
        An ``extern "C" __global__`` function in it.
    **macros : int or str
        ``REAL="float"`` becomes ``-DREAL=float``.

    Returns
    -------
    cupy.RawKernel
        To be called as ``kernel(grid, block, arguments, shared_mem=bytes)``, on CuPy's current stream.
    """
    import cupy

    return _module(cupy.cuda.Device().id, file, options(**macros)).get_function(name)


def source(file: str) -> str:
    """Text of ``kernels/{file}.cu`` with its headers in place of their ``#include``."""
    text = _read(f"{file}.cu")

    def spliced(include: re.Match[str]) -> str:
        line = text.count("\n", 0, include.end()) + 2
        return f'#line 1 "{include[1]}"\n{_read(include[1])}#line {line} "{file}.cu"'

    return _INCLUDE.sub(spliced, text)


def options(**macros: int | str) -> tuple[str, ...]:
    """Compiler options for a set of macros."""
    return (*COMPILER_OPTIONS, *(f"-D{name}={value}" for name, value in sorted(macros.items())))


def clear() -> None:
    """Forget every compiled kernel; the next use compiles again."""
    _module.cache_clear()


@cache
def _module(device: int, file: str, compiler_options: tuple[str, ...]) -> Any:
    import cupy

    return cupy.RawModule(code=source(file), options=compiler_options)


def _read(name: str) -> str:
    return files("gmmcnn.kernels").joinpath(name).read_text(encoding="utf-8")
