"""Files that a run keeps: the one module that reads them, writes them aside and digests what they hold.

One rule for all that is written: whoever reads finds the old content or the new, never half of it, and what a record
speaks of has reached the disk before the record does. So everything is written under another name first, forced to
disk, and renamed. The names are unique, so that two processes may write the same file: one of them wins, whole.

What is read may be missing, torn or something else: there is one reader a kind, whose errors name the file and the
remedy.
"""

import csv
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gmmcnn.errors import StoreError, chain, one_line
from gmmcnn.names import command

if TYPE_CHECKING:
    from torch import Tensor

_MACHINE = f"{zlib.crc32(platform.node().encode()):08x}" if Path("/proc/self").exists() else "elsewhere"
"""Whose processes can be looked up: those of another machine, or of one without ``/proc``, may still be writing."""
_FORMULA = re.compile(r"'*[=+\-@\t\r].", re.DOTALL)
"""How texts begin that a spreadsheet would run, and those that had an apostrophe before already."""
_OWN_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*(?<!\.)")  # not ending in a dot, which Windows would drop
PARTIAL = ".partial"
"""How the names of files end that are being written, and of those that a killed process left behind."""


Kind: TypeAlias = "type | tuple[Kind, ...] | list[Kind] | dict[type, Kind] | None"
"""What :func:`read_record` may expect of a value."""
Kinds: TypeAlias = Mapping[str, Kind]
DIGESTS = "digests.json"
"""Record of the files in its folder, each with its SHA-256."""
_OWN_DIGEST = "digest"
"""Where a record's own digest stands in it: SHA-256 of all the rest."""
LARGEST_OF_SMALL, LARGEST_RATIO = 2**30, 100
"""Bytes that any archive may unpack to, and how many times its own size a large one may: fits pack to a tenth at best,
zeros to a thousandth."""
_OF_COMPILED_CODE = re.compile(r"\(os error (\d+)\)")
_UNREADABLE = (
    OSError, EOFError, ValueError, TypeError, KeyError, AttributeError, MemoryError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What reading a damaged or foreign archive raises; a header may ask for more memory than there is,
and a part be no array."""
_WHOLE = 64
_A_DIGEST = re.compile(f"[0-9a-f]{{{_WHOLE}}}")
_SHOWN = 40


# -------------------------------------------------------------------------------------------------------------- reading


def read_json(path: Path) -> dict[str, Any]:
    """Content of a JSON file, empty if it is missing or no JSON object."""
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def read_record(path: Path, kinds: "Kinds", *, remedy: str) -> dict[str, Any] | None:
    """Content of a record that :func:`write_record` wrote; None if it is missing.

    Records of earlier versions bear no digest: their content is looked at, but whether it is as it was written cannot
    be told.

    Parameters
    ----------
    path : Path
    kinds : mapping
        Name → type of what must stand there. A list of one type is a list of such items; a dictionary of one, ``{str:
        type}``, a dictionary of such values; a tuple names alternatives; ``None`` stands for itself. Other names may
        stand beside them.
    remedy : str
        End of the error's message.

    Raises
    ------
    StoreError
        The file is damaged: no JSON, of another digest than it says itself, or of other types.
    """
    try:
        written = path.read_bytes()
        content = json.loads(written)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise StoreError(f"{path}: damaged, no JSON ({one_line(error)}); {remedy}") from error
    if not isinstance(content, dict):
        raise StoreError(f"{path}: damaged, no JSON object; {remedy}")
    said = content.pop(_OWN_DIGEST, None)
    lost = said is None and any(isinstance(value, str) and _A_DIGEST.fullmatch(value) for value in content.values())
    if lost or (said and written != _as_record(content)):  # lost: it stands there under another name
        raise StoreError(f"{path}: damaged, its content is not what was written; {remedy}")
    for name, kind in kinds.items():
        if not _is(content.get(name), kind):
            raise StoreError(f"{path}: damaged, {name} is {_shown(content.get(name))}; {remedy}")
    return content


def _shown(value: Any) -> str:
    """A value from a damaged record, cut short."""
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} …"


def _is(value: Any, kind: "Kind") -> bool:
    """Whether a value from JSON is of a kind; truth values are no numbers, whole numbers are numbers."""
    if isinstance(kind, tuple):
        return any(_is(value, alternative) for alternative in kind)
    if isinstance(kind, list):
        return isinstance(value, list) and all(_is(item, kind[0]) for item in value)
    if isinstance(kind, dict):
        return isinstance(value, dict) and all(_is(item, kind[str]) for item in value.values())
    if kind is None:
        return value is None
    return isinstance(value, (int, float) if kind is float else kind) and (kind is bool or not isinstance(value, bool))


def read_table(path: Path, columns: Sequence[str], *, remedy: str, numbers: Sequence[str] = ()) -> pd.DataFrame:
    """Read a CSV file.

    Parameters
    ----------
    path : Path
    columns : sequence of str
        Some that it must have.
    remedy : str
        End of the error's message.
    numbers : sequence of str
        Columns that must hold numbers.

    Raises
    ------
    StoreError
        The file is missing or damaged.
    """
    try:
        table = _cells(pd.read_csv(path), lambda text: text[1:] if text[:1] == "'" and _FORMULA.match(text) else text)
        table[list(columns)]
        for column in numbers:
            table[column].astype(float)
    except FileNotFoundError as error:
        raise StoreError(f"{path}: missing; {remedy}") from error
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(f"{path}: damaged ({one_line(error)}); {remedy}") from error
    return table


def require_no_bomb(path: Path) -> None:
    """Raise ValueError if a zip archive would unpack to far more than its size; before any of it is read."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        n_bytes = sum(part.file_size for part in archive.infolist())
    if n_bytes > max(LARGEST_OF_SMALL, LARGEST_RATIO * path.stat().st_size):
        raise ValueError(f"{n_bytes / 2**30:.1f} GiB packed into {path.stat().st_size / 2**20:.1f} MiB")


@contextmanager
def arrays_in(path: Path, *, remedy: str) -> Iterator[Mapping[str, NDArray]]:
    """Open an ``.npz`` file; in the block too, what is not as expected counts as damage to the file.

    Parameters
    ----------
    path : Path
    remedy : str
        End of the error's message.

    Raises
    ------
    StoreError
        The file is damaged or holds something else.
    """
    try:
        require_no_bomb(path)
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            yield arrays
    except _UNREADABLE as error:
        raise StoreError(f"{path}: damaged or something else ({one_line(error)}); {remedy}") from error


# -------------------------------------------------------------------------------------------------------------- writing


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the place of ``path``, on disk and whole, when the block ends.

    Missing folders are made. If the block ends with an error, ``path`` is left as it was.

    Yields
    ------
    binary file
        To be written to.
    """
    draft = aside(path)
    with naming(path):
        make_folder(path.parent)
        try:
            with draft.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except BaseException:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
            raise
        remove_what_was_left(path)
        sync(path.parent)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let errors of the operating system that name no file, as those of a write, name this one.

    Those of which compiled code tells nothing but a number become what they are.
    """
    try:
        yield
    except Exception as error:
        for cause in chain(error):
            if isinstance(cause, OSError) and cause.filename is None:
                cause.filename = str(path)
        if not isinstance(error, OSError) and (found := _OF_COMPILED_CODE.search(str(error))):
            raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file, in UTF-8."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: Path, content: Mapping[str, Any], *, indent: int | None = None) -> None:
    """Write a JSON file."""
    write_text(path, json.dumps(content, indent=indent) + "\n")


def write_record(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file that :func:`read_record` knows again: with a digest of its own content."""
    write_text(path, _as_record(content).decode())


def _as_record(content: Mapping[str, Any]) -> bytes:
    return (json.dumps({**content, _OWN_DIGEST: name_of(content, _WHOLE)}, indent=1) + "\n").encode()


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table without its index: as Parquet where the name ends in ``.parquet``, else as CSV.

    In CSV a text that a spreadsheet would take for a formula, as ``=1+1`` or ``@name``, follows an apostrophe, by which
    spreadsheets know text; :func:`read_table` takes it off again.
    """
    if path.suffix == ".parquet":
        with replacing(path) as file:
            table.to_parquet(file, index=False)
    else:
        as_text = _cells(table, lambda text: f"'{text}" if _FORMULA.match(text) else text)
        text = as_text.to_csv(index=False)
        if "\r" in text:  # which ends a line where it stands without quotes
            text = as_text.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC)
        write_text(path, text)


def write_arrays(path: Path, arrays: Mapping[str, NDArray], *, compressed: bool = False) -> None:
    """Write arrays by name to an ``.npz`` file, which :func:`arrays_in` reads."""
    with replacing(path) as file:
        (np.savez_compressed if compressed else np.savez)(file, allow_pickle=False, **arrays)


def aside(path: Path) -> Path:
    """Name beside ``path`` that nobody else uses: of what is to be renamed to it, or is about to be removed."""
    return path.with_name(f".{path.name}.{_MACHINE}-{os.getpid()}-{secrets.token_hex(4)}{PARTIAL}")


def remove_what_was_left(path: Path) -> None:
    """Remove what killed processes of this machine have begun to write to ``path``."""
    for draft in path.parent.glob(f".{escape(path.name)}.*{PARTIAL}"):
        owner = draft.name.removesuffix(PARTIAL).rpartition(".")[2].split("-")
        if owner[0] == _MACHINE != "elsewhere" and not Path(f"/proc/{owner[1]}").exists():
            shutil.rmtree(draft, ignore_errors=True) if draft.is_dir() else draft.unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder and all in it, where it is there; OSError where that fails, and what is left goes next time."""
    if folder.exists():
        shutil.rmtree(folder)


def make_folder(folder: Path) -> None:
    """Make a folder and those it lies in, where they are missing; their names are on disk then."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in reversed(missing):
        sync(made.parent)


def sync(path: Path) -> None:
    """Force a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Force everything in a folder to disk, and its own names last."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def _cells(table: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    """Change all texts in a table's cells; other values, numbers in a column of mixed types among them, stay."""
    texts = [name for name in table.columns if not pd.api.types.is_numeric_dtype(table[name])]
    return table.assign(**{name: table[name].map(lambda v: change(v) if isinstance(v, str) else v) for name in texts})


# -------------------------------------------------------------------------------------------------------------- digests


def file_name(text: str, length: int = 80) -> str:
    """Name of a file or folder for a text from outside, such as a layer's name: one component, never a path.

    A text of small letters, digits, ``.``, ``_`` and ``-`` that begins with a letter or digit is its own name. Of any
    other, what is left when the rest is replaced by ``_`` is followed by a digest of the whole: no two texts share a
    name, not even where files are told apart without regard to case.

    Parameters
    ----------
    text : str
    length : int
        Characters that are kept.
    """
    if _OWN_NAME.fullmatch(text) and len(text) <= length:
        return text
    return f"{without_unusual(text)[:length].lstrip('._-') or 'name'}-{name_of(text, 8)}"


def without_unusual(text: str) -> str:
    """Replace all but ASCII letters, digits, ``.``, ``_`` and ``-`` by ``_``; different texts may become one."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", text)


def name_of(content: object, length: int = 12) -> str:
    """Short name of some JSON content: the same for equal content, another for other."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:length]


def digest_arrays(*parts: bytes | NDArray) -> str:
    """SHA-256 of texts and of the values of arrays, one after the other."""
    digest = hashlib.sha256()
    for part in parts:
        values: Any = part if isinstance(part, bytes) else np.ascontiguousarray(part)
        digest.update(values)
    return digest.hexdigest()


def digest_tensors(
    tensors: Iterable["Tensor"] | Mapping[str, "Tensor"], header: str = "{dtype} {shape}\n", prefix: str = ""
) -> str:
    r"""SHA-256 of the types, shapes and values of tensors, and of their names where they have some.

    Parameters
    ----------
    tensors : iterable of Tensor, or mapping of name to Tensor
    header : str
        What stands before the values of each tensor.
    prefix : str
        What stands before the first.
    """
    import torch  # here, so that tables can be read without it

    digest = hashlib.sha256(prefix.encode())
    named = tensors.items() if isinstance(tensors, Mapping) else (("", tensor) for tensor in tensors)
    for name, tensor in named:
        digest.update(f"{name}\n".encode() if name else b"")
        digest.update(header.format(dtype=tensor.dtype, shape=tuple(tensor.shape)).encode())
        values: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(values)
    return digest.hexdigest()


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_digests(folder: Path, digests: Mapping[str, str]) -> None:
    """Record what files of a folder hold: name → SHA-256."""
    write_record(folder / DIGESTS, {"sha256": dict(digests)})


def read_digests(folder: Path) -> dict[str, str] | None:
    """Read what :func:`write_digests` recorded; None if that is missing, StoreError if it is damaged."""
    path, remedy = folder / DIGESTS, f"written again by: {command('repair', run_of(folder / DIGESTS))}"
    record = read_record(path, {"sha256": {str: str}}, remedy=remedy)
    return None if record is None else require_inside(record["sha256"], path, remedy=remedy)


def require_inside(digests: dict[str, str], path: Path, *, remedy: str) -> dict[str, str]:
    """Digests as they are; StoreError, of the record at ``path``, if a name in them would lead out of its folder."""
    for name in digests:
        if "\0" in name or Path(name).is_absolute() or not Path(name).parts or ".." in Path(name).parts:
            raise StoreError(f"{path}: damaged, {_shown(name)} is no file of its folder; {remedy}")
    return digests


def add_digest(path: Path) -> None:
    """Record what one more file of a folder holds."""
    write_digests(path.parent, (read_digests(path.parent) or {}) | {path.name: sha256(path)})


def require_as_recorded(path: Path) -> None:
    """Raise StoreError if a file is another than its folder's :data:`DIGESTS` say; it may not be named there."""
    expected = (read_digests(path.parent) or {}).get(path.name)
    if expected is not None and sha256(path) != expected:
        again = command("repair", run_of(path))
        raise StoreError(f"{path}: damaged, its SHA-256 is not the one recorded; made again by: {again}")


def run_of(path: Path) -> Path | str:
    """Run folder that a file lies in: the nearest one above it with a record of settings; ``FOLDER`` where none is."""
    return next((folder for folder in path.parents if (folder / "config.yaml").exists()), "FOLDER")


def crc32(path: Path, bytes_at_once: int = 1 << 22) -> str:
    """CRC-32 of a file's content, in hexadecimal digits."""
    checksum = 0
    with path.open("rb") as file:
        while part := file.read(bytes_at_once):
            checksum = zlib.crc32(part, checksum)
    return f"{checksum:08x}"
