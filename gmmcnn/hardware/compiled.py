"""Python compiled by Numba: the decorators, and the compiled code that is kept on disk.

Everything of Numba that is not part of its documented interface is touched here and nowhere else. Where a later Numba
has it no more, only the cache on disk is lost, and the instructions of AVX-512 that have no portable name.

Numba takes a cache for sound: a truncated index or data file ends the program, again at every start. Here a file that
cannot be read, or whose content is not what was written, is as good as none: it is deleted, its function is compiled
anew, and a :class:`~gmmcnn.errors.CompileCacheWarning` says so. A folder that cannot be written costs the time to
compile, at every start, and says so too.
"""

import hashlib
import pickle
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, cast

import numba
from llvmlite.binding import get_host_cpu_name
from numba import njit
from numba.core.serialize import dumps

from gmmcnn.errors import CompileCacheWarning, one_line

F = TypeVar("F", bound=Callable[..., Any])

_jit: Any = partial(njit, nogil=True, error_model="numpy", no_cfunc_wrapper=True)
"""No interpreter lock, and division as the processor does it."""

try:
    from numba.core.caching import CompileResultCacheImpl, FunctionCache
except ImportError:  # private to Numba
    CompileResultCacheImpl = FunctionCache = object  # type: ignore[assignment,misc]

_caches: list["_CheckedCache"] = []


def kernel(function: F) -> F:
    """Compile a function that compiled functions call."""
    return cast(F, _jit(function))


def inlined(function: F) -> F:
    """Compile a function whose code takes the place of every call: what works on vectors in registers."""
    return cast(F, _jit(function, forceinline=True))


def compiled_entry(*modules: ModuleType) -> Callable[[F], F]:
    """Compile a function called from Python, and keep it on disk.

    Numba renews a cached function when the file that defines it changes, and not when one of the ``modules`` does
    whose functions it calls; this does.
    """

    def decorate(function: F) -> F:
        dispatcher: Any = _jit(function)
        sources = [Path(str(source)) for source in (function.__code__.co_filename, *(m.__file__ for m in modules))]
        try:
            cache = _CheckedCache(function, [(source.stat().st_mtime, source.stat().st_size) for source in sources])
        except (AttributeError, TypeError):  # another Numba
            return cast(F, dispatcher)
        except (RuntimeError, OSError) as error:
            warnings.warn(_not_kept(error), CompileCacheWarning, stacklevel=2)
            return cast(F, dispatcher)
        dispatcher._cache = cache
        _caches.append(cache)
        return cast(F, dispatcher)

    return decorate


def examine_cache() -> tuple[str, bool]:
    """Look at every file of the cache on disk without running anything; delete the damaged ones.

    Returns
    -------
    str
        What was found, in one line.
    bool
        Whether compiled code can be kept and nothing was damaged.
    """
    if not _caches:
        return f"none: {_not_kept('no folder, or another Numba')}", False
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        kept = sum(cache.examine() for cache in _caches)
    folder = _caches[0].cache_path
    if said:
        return "; ".join(str(warning.message) for warning in said), False
    return f"{kept} compiled functions in {folder}", True


def cache_folder() -> Path | None:
    """Where compiled code is kept; None where it is not."""
    return Path(_caches[0].cache_path) if _caches else None


def stamp() -> list[str]:
    """What compiled code is good for: Numba, the processor, and the sources as they are."""
    return [numba.__version__, get_host_cpu_name(), *(str(cache._cache_file._source_stamp) for cache in _caches)]


def target_features(context: Any) -> frozenset[str]:
    """Features of the processor that Numba compiles for, as LLVM spells them: ``+avx512f``."""
    try:
        return frozenset(context.codegen()._tm_features.split(","))
    except AttributeError:  # another Numba: portable arithmetic
        return frozenset()


def _not_kept(error: object) -> str:
    reason = one_line(error) if isinstance(error, BaseException) else error
    return (
        f"compiled code is not kept on disk ({reason}): every start compiles anew, for some ten seconds; set "
        "NUMBA_CACHE_DIR to a folder that can be written"
    )


class _Damaged(Exception):
    """Cached code that is not what was written."""


class _Checked(CompileResultCacheImpl):
    """What Numba writes of a compiled function, behind its digest."""

    def reduce(self, cres: Any) -> tuple[bytes, bytes]:
        content = dumps(super().reduce(cres))
        return hashlib.sha256(content).digest(), content

    def rebuild(self, target_context: Any, payload: Any) -> Any:
        return super().rebuild(target_context, pickle.loads(checked(payload)))


class _CheckedCache(FunctionCache):
    """Numba's cache of one function, for which whatever cannot be read was never written."""

    _impl_class = _Checked

    def __init__(self, function: Callable[..., Any], source_stamp: object) -> None:
        super().__init__(function)
        self._cache_file._source_stamp = source_stamp

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except OSError:  # unreadable: to be told when it cannot be written either
            return None
        except Exception as error:  # noqa: BLE001 - whatever a damaged pickle raises
            self._discard(error)
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError as error:
            warnings.warn(_not_kept(error), CompileCacheWarning, stacklevel=2)
        except Exception as error:  # noqa: BLE001 - the index is read before it is written
            self._discard(error)

    def examine(self) -> int:
        """Number of sound compiled functions; what is damaged is deleted, with a warning."""
        try:
            names = self._cache_file._load_index().values()
            for name in names:
                checked(self._cache_file._load_data(name))
        except Exception as error:  # noqa: BLE001 - whatever a damaged pickle raises
            self._discard(error)
            return 0
        return len(names)

    def _discard(self, error: Exception) -> None:
        """Delete the files of this function, damaged or not, and say so."""
        folder, stem = Path(self.cache_path), self._impl.filename_base
        for path in [*folder.glob(f"{stem}.nbi"), *folder.glob(f"{stem}.*.nbc")]:
            try:
                path.unlink(missing_ok=True)
            except OSError:  # a folder that cannot be written: the next start finds the same
                break
        message = f"the compiled code of {self._py_func.__name__} in {folder} is damaged ({one_line(error)})"
        warnings.warn(f"{message}: it is deleted and compiled anew", CompileCacheWarning, stacklevel=2)


def checked(payload: Any) -> bytes:
    """What was written, without the digest before it."""
    digest, content = payload
    if hashlib.sha256(content).digest() != digest:
        raise _Damaged("its digest does not fit")
    return cast(bytes, content)
