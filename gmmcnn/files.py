"""Files that a run keeps: the one module that reads them, writes them aside and digests what they hold.

One rule for all that is written: whoever reads finds the old content or the new, never half of it, and what a record
speaks of has reached the disk before the record does. So everything is written under another name first, forced to
disk, and renamed. The names are unique, so that two processes may write the same file: one of them wins, whole.

What is read may be missing, torn or something else: there is one reader a kind, whose errors name the file and the
remedy.
"""

import hashlib
import json
import os
import platform
import secrets
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gmmcnn.errors import StoreError, one_line

if TYPE_CHECKING:
    from torch import Tensor

_MACHINE = f"{zlib.crc32(platform.node().encode()):08x}" if Path("/proc/self").exists() else "elsewhere"
"""Whose processes can be looked up: those of another machine, or of one without ``/proc``, may still be writing."""
PARTIAL = ".partial"
"""How the names of files end that are being written, and of those that a killed process left behind."""


# -------------------------------------------------------------------------------------------------------------- reading


def read_json(path: Path) -> dict[str, Any]:
    """Content of a JSON file, empty if it is missing or no JSON object."""
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_table(path: Path, columns: Sequence[str], *, remedy: str) -> pd.DataFrame:
    """Read a CSV file.

    Parameters
    ----------
    path : Path
    columns : sequence of str
        Some that it must have.
    remedy : str
        End of the error's message.

    Raises
    ------
    StoreError
        The file is missing or damaged.
    """
    try:
        table = pd.read_csv(path)
        table[list(columns)]
    except FileNotFoundError as error:
        raise StoreError(f"{path}: missing; {remedy}") from error
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(f"{path}: damaged ({one_line(error)}); {remedy}") from error
    return table


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
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            yield arrays
    except (OSError, EOFError, ValueError, TypeError, KeyError, zipfile.BadZipFile, zlib.error) as error:
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
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = aside(path)
    try:
        with draft.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    _remove_what_was_left(path)
    sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file, in UTF-8."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: Path, content: Mapping[str, Any], *, indent: int | None = None) -> None:
    """Write a JSON file."""
    write_text(path, json.dumps(content, indent=indent) + "\n")


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table without its index: as Parquet where the name ends in ``.parquet``, else as CSV."""
    if path.suffix == ".parquet":
        with replacing(path) as file:
            table.to_parquet(file, index=False)
    else:
        write_text(path, table.to_csv(index=False))


def write_arrays(path: Path, arrays: Mapping[str, NDArray], *, compressed: bool = False) -> None:
    """Write arrays by name to an ``.npz`` file, which :func:`arrays_in` reads."""
    with replacing(path) as file:
        (np.savez_compressed if compressed else np.savez)(file, allow_pickle=False, **arrays)


def aside(path: Path) -> Path:
    """Name beside ``path`` that nobody else uses: of what is to be renamed to it, or is about to be removed."""
    return path.with_name(f".{path.name}.{_MACHINE}-{os.getpid()}-{secrets.token_hex(4)}{PARTIAL}")


def _remove_what_was_left(path: Path) -> None:
    """Remove what killed processes of this machine have begun to write to ``path``."""
    for draft in path.parent.glob(f".{escape(path.name)}.*{PARTIAL}"):
        owner = draft.name.removesuffix(PARTIAL).rpartition(".")[2].split("-")
        if owner[0] == _MACHINE != "elsewhere" and not Path(f"/proc/{owner[1]}").exists():
            draft.unlink(missing_ok=True)


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


# -------------------------------------------------------------------------------------------------------------- digests


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


def crc32(path: Path, bytes_at_once: int = 1 << 22) -> str:
    """CRC-32 of a file's content, in hexadecimal digits."""
    checksum = 0
    with path.open("rb") as file:
        while part := file.read(bytes_at_once):
            checksum = zlib.crc32(part, checksum)
    return f"{checksum:08x}"
