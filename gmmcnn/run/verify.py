"""Is everything in a run folder as it was written? Looks, and changes nothing.

Only what the records in the folder say is compared, by paths relative to it: an archive of a run that was moved
elsewhere, or cannot be written, is verified like any other, and nothing that its settings name is imported.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gmmcnn.errors import GmmcnnError, StoreError, StoreNotFoundError
from gmmcnn.featuremaps.store import ActivationStore
from gmmcnn.files import PARTIAL
from gmmcnn.models import retraining
from gmmcnn.names import command
from gmmcnn.progress import progress, say
from gmmcnn.report.views import plural

_BYTES_PER_SECOND = 300e6
"""Read and digested, about: what the time said beforehand comes from."""
_WORTH_SAYING = 2.0
"""Seconds."""


@dataclass(frozen=True)
class Part:
    """Something that a run folder holds.

    Attributes
    ----------
    path : Path
        File or folder.
    kind : str
        ``weights``, ``maps`` or ``leftover``: how it can be made again.
    problems : callable
        Says what is wrong, a line for each; nothing where all is well.
    """

    path: Path
    kind: str
    problems: Callable[[], list[str]]

    @property
    def n_bytes(self) -> int:
        """What is to be read."""
        files = self.path.rglob("*") if self.path.is_dir() else [self.path]
        return sum(file.stat().st_size for file in files if file.is_file())


def parts(folder: Path) -> list[Part]:
    """What a run folder holds, in the order in which one thing is made from the other."""
    return [*_weights(folder), *_maps(folder), *_leftovers(folder)]


def wrong(folder: Path, found: list[Part]) -> dict[Part, list[str]]:
    """Look at parts of a run folder, with a bar over their bytes; those with problems, and which."""
    n_bytes = [part.n_bytes for part in found]
    if (seconds := sum(n_bytes) / _BYTES_PER_SECOND) > _WORTH_SAYING:
        say(f"{folder}: {sum(n_bytes) / 1e9:.1f} GB to be read, about {seconds:.0f} s")
    problems = {}
    with progress("verifying", sum(n_bytes), "bytes") as advance:
        for part, size in zip(found, n_bytes, strict=True):
            problems[part] = part.problems()
            advance(size)
    return {part: lines for part, lines in problems.items() if lines}


def verify(folder: Path) -> None:
    """Say of everything in a run folder whether it is complete and undamaged.

    Raises
    ------
    StoreNotFoundError
        The folder holds nothing.
    StoreError
        Anything is missing, damaged, of something else, or left behind by an interrupted task.
    """
    found = parts(folder)
    if not found:
        raise StoreNotFoundError(
            f"{folder}: holds neither weights nor feature maps; made by: {command('extract', folder)}"
        )
    problems = wrong(folder, found)
    for part in found:
        say(f"{part.path}: {'; '.join(problems.get(part, [])) or 'complete'}")
    if problems:
        raise StoreError(
            f"{len(problems)} of {plural(len(found), 'part')} not as recorded: see above; made again by: "
            f"{command('repair', folder)}"
        )


def remove_leftovers(problems: Iterable[Part]) -> None:
    """Remove what interrupted tasks left behind, in a folder that no task works in."""
    for part in problems:
        if part.kind == "leftover" and part.path.is_dir():
            shutil.rmtree(part.path)
        elif part.kind == "leftover":
            part.path.unlink()


def _weights(folder: Path) -> Iterator[Part]:
    for place in (folder / "checkpoints", *sorted(folder.glob("networks/*/checkpoints"))):
        if place.is_dir() and any(place.iterdir()):
            yield Part(place, "weights", lambda place=place: _listed(retraining.problems(place)))  # type: ignore[misc]


def _maps(folder: Path) -> Iterator[Part]:
    for place in sorted(folder.glob("activations/*/maps.zarr")):
        yield Part(place, "maps", lambda place=place: _of_store(place))  # type: ignore[misc]


def _leftovers(folder: Path) -> Iterator[Part]:
    for place in sorted(folder.rglob(f"*{PARTIAL}")):
        if not any(parent.name.endswith(PARTIAL) or parent.suffix == ".zarr" for parent in place.parents):
            yield Part(place, "leftover", lambda: ["left behind by an interrupted task"])


def _listed(problems: dict[str, str]) -> list[str]:
    return [f"{name}: {problem}" for name, problem in problems.items()]


def _of_store(path: Path) -> list[str]:
    try:
        return ActivationStore.open(path, partial=True).verify()
    except GmmcnnError as error:
        return [str(error)]
