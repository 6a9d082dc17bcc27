"""Files that may be missing, torn or something else: one reader a kind, whose errors name the file and the remedy."""

import json
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gmmcnn.errors import StoreError, one_line


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


def write_aside(path: Path, text: str) -> None:
    """Write a text file so that at ``path`` there is the old content or the new, never half of it."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write aside, force to disk, rename."""
    draft = path.with_suffix(".partial")
    draft.write_text(json.dumps(content))
    sync(draft)
    draft.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Force a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file_aside(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under another name, to the disk, then rename it: ``path`` is the old file or the whole new one."""
    partial = path.with_name(path.name + ".partial")
    write(partial)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)
