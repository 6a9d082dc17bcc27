"""``run.json``: how the work in a run folder went, and what its tables hold.

A task writes the SHA-256 of its tables there when it ends, and whoever reads a table compares it. So a table that was
damaged or exchanged is found, and so are those of a task that was killed between two of them: it left some of this
screening and some of the one before.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from gmmcnn import files
from gmmcnn.errors import StoreError
from gmmcnn.names import command

NAME = "run.json"
KINDS: files.Kinds = {"status": str, "task": str, "seconds": {str: float}, "files": ({str: str}, None)}


def read(folder: Path) -> dict[str, Any]:
    """Content of the record, empty where there is none. StoreError if it is damaged."""
    path, remedy = folder / NAME, f"written again by: {command('repair', folder)}"
    content = files.read_record(path, KINDS, remedy=remedy) or {}
    files.require_inside(content.get("files") or {}, path, remedy=remedy)
    return content


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the tables in a run folder, by name; none where the record is missing, damaged, or of before."""
    try:
        return read(folder).get("files") or {}
    except StoreError:
        return {}


def problem(folder: Path, name: str, digest: str | None) -> str | None:
    """What is wrong with a file that should hold what a digest says; None where nothing is, or nothing is known."""
    path = folder / name
    if digest is None:
        return None
    if not path.exists():
        return "missing"
    return None if files.sha256(path) == digest else "damaged, its SHA-256 is not the one recorded"


def read_table(
    folder: Path, name: str, columns: Sequence[str], *, remedy: str, digest: str | None, numbers: Sequence[str] = ()
) -> pd.DataFrame:
    """Read a table of a run, and compare it with its digest.

    Parameters
    ----------
    folder : Path
    name : str
    columns, numbers : sequence of str
        Columns that it must have, and those of numbers among them.
    remedy : str
        End of the error's message.
    digest : str or None
        As :func:`digests` has it.

    Raises
    ------
    StoreError
        The file is missing or damaged, or another than was recorded.
    """
    table = files.read_table(folder / name, columns, remedy=remedy, numbers=numbers)
    if found := problem(folder, name, digest):
        raise StoreError(f"{folder / name}: {found}; {remedy}")
    return table
