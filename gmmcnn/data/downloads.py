"""Where data set files lie, and torchvision's help to fetch them.

torchvision is used as a downloader only. The files are always read by gmmcnn's own readers, because torchvision
unpickles CIFAR.
"""

import importlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

from gmmcnn.errors import DataNotFoundError, one_line


def cache_folder() -> Path:
    """Folder for downloads where ``data.root`` is not set: ``$XDG_CACHE_HOME/gmmcnn`` or ``~/.cache/gmmcnn``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gmmcnn"


def first_with(folders: Iterable[Path], present: Callable[[Path], bool]) -> Path | None:
    """Return the first folder that holds any file of the data set, or None."""
    return next((folder for folder in folders if present(folder)), None)


def torchvision_datasets() -> ModuleType | None:
    """``torchvision.datasets``, or None where torchvision is missing or does not fit the installed torch."""
    try:
        return importlib.import_module("torchvision.datasets")
    except (ImportError, RuntimeError, AttributeError):  # the latter two: built for another torch
        return None


def download(name: str, root: Path, fetch: Callable[[ModuleType], object], remedy: str) -> None:
    """Fetch a data set's files through torchvision.

    Raises
    ------
    DataNotFoundError
        torchvision cannot be imported, or the download failed.
    """
    datasets = torchvision_datasets()
    if datasets is None:
        raise DataNotFoundError(f"{name}: no files in {root}; {remedy}")
    root.mkdir(parents=True, exist_ok=True)
    try:
        fetch(datasets)
    except (OSError, RuntimeError) as error:
        raise DataNotFoundError(
            f"{name}: no files in {root}, and their download failed ({one_line(error)}); {remedy}"
        ) from error
