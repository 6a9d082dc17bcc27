"""Is everything in a run folder as it was written? Looks, and changes nothing.

Only what the records in the folder say is compared, by paths relative to it: an archive of a run that was moved
elsewhere, or cannot be written, is verified like any other, and nothing that its settings name is imported.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gmmcnn.config import Settings
from gmmcnn.errors import ConfigurationError, GmmcnnError, StoreError, StoreNotFoundError
from gmmcnn.featuremaps.store import ActivationStore
from gmmcnn.files import DIGESTS, PARTIAL, read_digests, read_record, write_digests
from gmmcnn.filters import fitting
from gmmcnn.models import retraining
from gmmcnn.names import command
from gmmcnn.progress import progress, say
from gmmcnn.report.views import plural
from gmmcnn.run import probed, provenance, record, status

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
        ``record``, ``weights``, ``probe``, ``maps``, ``fits``, ``kept`` by an experiment, ``table`` or
        ``leftover``: says how it is made again.
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


def parts(folder: Path, digests: Mapping[str, str] | None = None) -> list[Part]:
    """What a run folder holds, in the order in which one thing is made from the other.

    Parameters
    ----------
    folder : Path
    digests : mapping, optional
        What its tables should hold: name → SHA-256; None takes what the last task has recorded.
    """
    tables = status.digests(folder) if digests is None else digests
    found = (_records, _weights, _probes, _maps, _fits, _kept, partial(_tables, digests=tables), _leftovers)
    return [part for kind in found for part in kind(folder)]


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
    """Remove what interrupted tasks left behind, and damaged files that are made again when asked for."""
    for part in problems:
        if part.kind == "fits":
            fitting.forget(_wrong_fits(part.path))
        if part.kind == "leftover" and part.path.is_dir():
            shutil.rmtree(part.path)
        elif part.kind in ("leftover", "kept"):
            part.path.unlink(missing_ok=True)
            if part.kind == "kept":
                _forget(part.path)


def _forget(path: Path) -> None:
    """Drop the digest of a file that is gone, in a record that is not."""
    if path.name != DIGESTS and (digests := read_digests(path.parent)):
        write_digests(path.parent, {name: digest for name, digest in digests.items() if name != path.name})


def _records(folder: Path) -> Iterator[Part]:
    settings, how_it_went = folder / record.NAME, folder / status.NAME
    readers: dict[Path, Callable[[], object]] = {}
    if settings.exists() or (how_it_went.exists() and _holds_a_run(folder)):
        readers[settings] = partial(_there, settings, partial(record.read, folder))
    if settings.exists() or how_it_went.exists():
        readers[how_it_went] = partial(_there, how_it_went, partial(status.read, folder))
    taps = [place / "taps.json" for place in sorted(folder.glob("activations/*")) if _holds_work(place)]
    readers |= {path: partial(provenance.Record.load, path) for path in taps}
    readers |= {
        path: partial(read_record, path, {}, remedy="made again by task=experiment")
        for path in sorted(folder.glob("networks/**/*.json"))
        if path.name != DIGESTS
    }
    for path, read in readers.items():
        yield Part(path, "kept" if "networks" in path.parts else "record", partial(_complaint, read))


def _there(path: Path, read: Callable[[], object]) -> None:
    """Read a record; StoreError if it is missing."""
    if not path.exists():
        raise StoreError(f"{path}: missing")
    read()


def _holds_a_run(folder: Path) -> bool:
    """Whether work was done in a folder, by settings that this version keeps."""
    return (
        any((folder / name).exists() for name in ("checkpoints", "activations"))
        and not (folder / record.EARLIER).exists()
    )


def _holds_work(place: Path) -> bool:
    """Whether the folder of a checkpoint holds what its record speaks of."""
    return any((place / name).exists() for name in ("taps.json", "maps.zarr", "fits"))


def _complaint(read: Callable[[], object]) -> list[str]:
    """Message of the error that reading something raises."""
    try:
        read()
    except GmmcnnError as error:
        return [str(error)]
    return []


def _kept(folder: Path) -> Iterator[Part]:
    for place in sorted(path.parent for path in folder.rglob(DIGESTS) if path.parent.name != "checkpoints"):
        try:
            digests = read_digests(place) or {}
        except StoreError as error:
            yield Part(place / DIGESTS, "kept", partial(list, [str(error)]))
            continue
        if place == folder / probed.FOLDER:  # whose files are looked at as such
            continue
        for name, digest in sorted(digests.items()):
            yield Part(place / name, "kept", partial(_problem, place, name, digest))


def _tables(folder: Path, digests: Mapping[str, str]) -> Iterator[Part]:
    for name, digest in digests.items():
        yield Part(folder / name, "table", partial(_problem, folder, name, digest))


def _problem(folder: Path, name: str, digest: str) -> list[str]:
    found = status.problem(folder, name, digest)
    return [found] if found else []


def _weights(folder: Path) -> Iterator[Part]:
    for place in (folder / "checkpoints", *sorted(folder.glob("networks/*/checkpoints"))):
        if place.is_dir() and any(place.iterdir()):
            yield Part(place, "weights", partial(_listed, place))


def _probes(folder: Path) -> Iterator[Part]:
    """What is known of the probe samples that the maps are of."""
    records = [provenance.Record.read(path) for path in sorted(folder.glob("activations/*/taps.json"))]
    for name in dict.fromkeys(found.identity.get("probe samples") for found in records if found):
        if name:
            yield Part(probed.path_of(folder, str(name)), "probe", partial(_of_probe, folder, str(name)))


def _of_probe(folder: Path, name: str) -> list[str]:
    if found := _complaint(partial(probed.read, folder, name)):
        return found
    return [] if probed.is_recorded(folder, name) else [f"its SHA-256 is missing in {DIGESTS}"]


def _maps(folder: Path) -> Iterator[Part]:
    for place in sorted(folder.glob("activations/*/maps.zarr")):
        yield Part(place, "maps", partial(_of_store, place))


def _fits(folder: Path) -> Iterator[Part]:
    try:
        settings = record.read(folder)
    except ConfigurationError:  # told where records are looked at
        settings = None
    for place in sorted(folder.glob("activations/*/fits/*")):
        if place.is_dir() and place.suffix != ".scores":
            yield Part(place, "fits", partial(_of_fits, place, settings))


def _of_fits(place: Path, settings: Settings | None) -> list[str]:
    """What is wrong with fits; of those for the settings in force, whether they are all there, too."""
    wrong = [f"{file.relative_to(place)}: damaged, or fits of something else" for file in _wrong_fits(place)]
    made_from = provenance.Record.read(place.parent.parent / "taps.json")
    if made_from and settings and place.name == fitting.fit_key(settings, made_from.n_samples):
        wrong += [f"{layer}: not all fitted" for layer in fitting.unfinished(place, made_from.analysed)]
    return wrong


def _wrong_fits(place: Path) -> list[Path]:
    made_from = provenance.Record.read(place.parent.parent / "taps.json")  # whose own problems are told apart
    return fitting.wrong_parts(place, made_from.analysed, made_from.of) if made_from else []


def _leftovers(folder: Path) -> Iterator[Part]:
    for place in sorted(folder.rglob(f"*{PARTIAL}")):
        if not any(parent.name.endswith(PARTIAL) or parent.suffix == ".zarr" for parent in place.parents):
            yield Part(place, "leftover", lambda: ["left behind by an interrupted task"])


def _listed(weights: Path) -> list[str]:
    return [f"{name}: {problem}" for name, problem in retraining.problems(weights).items()]


def _of_store(path: Path) -> list[str]:
    try:
        return ActivationStore.open(path, partial=True).verify()
    except GmmcnnError as error:
        return [str(error)]
