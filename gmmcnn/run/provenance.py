"""What a checkpoint's feature maps were made from: recorded with them, and compared before they are used.

Settings are given anew with every task, so those of a later task may speak of other weights, samples or maps than the
ones that lie in the folder. The record holds both: digests of what was really used, which decide whether maps are made
again, and the settings that led to it. A task that only reads the folder has nothing but the settings to compare, and
the content of the weights or the source where their file is still there.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gmmcnn import config
from gmmcnn.errors import ConfigurationError, StoreError, StoreNotFoundError
from gmmcnn.featuremaps.remote import is_remote
from gmmcnn.featuremaps.taps import Tapped
from gmmcnn.files import Kinds, name_of, read_record, write_record
from gmmcnn.models import training
from gmmcnn.names import command

_IMPORTED = ("extract.dtype", "probe.samples")
"""Settings that imported maps depend on, beside their source."""
_LOCATIONS = ("model.checkpoint", "extract.source")
"""Settings that say where something lies: what lies there is compared, as long as it is there."""
_STANDS_FOR = {"data": "probe samples", "probe": "probe samples", "seed": "probe samples", "model": "weights"}
"""Group → what its settings decide of the maps."""


_KINDS: Kinds = {"identity": dict, "origin": dict, "analysed": dict, "skipped": [[str]]}


@dataclass(frozen=True)
class Record:
    """What the last extraction into a checkpoint's folder left behind.

    Attributes
    ----------
    identity : mapping
        Digests and settings that decide whether maps are the same: name → value.
    origin : mapping
        All settings that the maps depend on: dotted name → value.
    n_samples : int
        N, samples in a probe batch.
    analysed : mapping
        Layer → what its maps are.
    skipped : tuple of (layer, reason)
    """

    identity: Mapping[str, Any]
    origin: Mapping[str, Any]
    n_samples: int
    analysed: Mapping[str, Tapped]
    skipped: tuple[tuple[str, str], ...]

    @property
    def of(self) -> str:
        """Names the maps: what their fits are known by."""
        return name_of(self.identity)

    def write(self, path: Path) -> None:
        """Write to ``path``."""
        content = {"identity": self.identity, "origin": self.origin, "n_samples": self.n_samples}
        analysed = {layer: asdict(tapped) for layer, tapped in self.analysed.items()}
        write_record(path, content | {"analysed": analysed, "skipped": self.skipped})

    @classmethod
    def read(cls, path: Path) -> "Record | None":
        """Read what :meth:`write` wrote, in this version or an earlier one; None where it is missing or damaged."""
        try:
            return cls.load(path)
        except StoreError:
            return None

    @classmethod
    def load(cls, path: Path) -> "Record":
        """Read what :meth:`write` wrote. StoreError if it is missing, damaged, or of a version that said less."""
        remedy = f"written again by: {command('extract', path.parent.parent.parent)}"
        unknown = StoreError(f"{path}: missing, or of another version; {remedy}")
        if (content := read_record(path, _KINDS, remedy=remedy)) is None:
            raise unknown
        content.setdefault("n_samples", content.get("batch_samples"))  # its earlier name
        identity, origin = content["identity"], content["origin"]
        if not isinstance(content["n_samples"], int) or not any(name in identity for name in ("source", "weights")):
            raise unknown
        try:
            return cls(
                identity=identity | {"settings": _by_name(identity["settings"])},
                origin={config.MOVED.get(str(name), str(name)): value for name, value in origin.items()},
                n_samples=content["n_samples"],
                analysed={layer: _tapped(said) for layer, said in dict(content["analysed"]).items()},
                skipped=tuple((layer, reason) for layer, reason in content["skipped"]),
            )
        except (LookupError, TypeError, ValueError):
            raise unknown from None


def identity(settings: config.Settings, weights: str | None, probe: str | None) -> dict[str, Any]:
    """Everything that maps made now would depend on, by the name under which an error reports it.

    Parameters
    ----------
    settings : config.Settings
    weights, probe : str or None
        Digests; None for imported maps. The content of their source is left out where it is not there any more.
    """
    if weights is None:
        given = str(settings.extract.source)
        source = given if is_remote(given) else Path(given).absolute()
        content = {"source content": _modified(source)} if isinstance(source, Path) and source.exists() else {}
        names: tuple[str, ...] = _IMPORTED
        known: dict[str, Any] = {"source": str(source)} | content
    else:
        names = tuple(name for name in config.deciding(settings, "maps") if name.startswith("extract."))
        names = tuple(name for name in names if name not in _LOCATIONS)  # all others are behind the samples' digest
        known = {"weights": weights[:16], "probe samples": probe}
    return known | {"settings": {name: config.value_of(settings, name) for name in names}}


def differences(recorded: Record | None, now: Mapping[str, Any]) -> list[str]:
    """Names of what the recorded maps do not share with an identity: all of them, where no maps are recorded."""
    found = recorded.identity if recorded else {}
    return [name for name, value in now.items() if found.get(name) != value]


def require_own(recorded: Record | None, settings: config.Settings, weights: str | None, folder: Path) -> Record:
    """Check by its settings that a record is of the maps that the settings in force would make.

    Parameters
    ----------
    recorded : Record or None
    settings : config.Settings
        Those in force.
    weights : str or None
        Digest of the weights; None where they are not there.
    folder : Path
        Of the checkpoint, for the error's message: two below the run folder.

    Raises
    ------
    StoreNotFoundError
        No maps are recorded.
    ConfigurationError
        They are of other weights, probe samples or settings.
    TrainingError
        Their network was trained with other settings.
    """
    run = folder.parent.parent
    if recorded is None:
        again = command("extract", run)
        raise StoreNotFoundError(f"{folder / 'taps.json'}: missing, damaged or of another version; first: {again}")
    origin, now = (config.AS_BEFORE | dict(made_of) for made_of in (recorded.origin, config.behind(settings, "maps")))
    changed = {name: origin[name] for name in _compared(settings) if name in origin and origin[name] != now[name]}
    others = dict.fromkeys(_STANDS_FOR.get(name.partition(".")[0], "settings") for name in changed)
    if content := _other_content(recorded, settings, weights):
        others[content] = None
    if others:
        changed |= {name: origin[name] for name in _LOCATIONS if name in origin and origin[name] != now[name]}
        given = [f"{name}={_written(value)}" for name, value in changed.items()]
        made_with = f" (made with {' '.join(given)})" if given else ""
        raise ConfigurationError(
            f"{folder}: holds feature maps of other {' and '.join(others)}{made_with}; "
            f"give what they were made with, or make new ones: {command('extract', run)}, then task=fit"
        )
    if not (settings.model.checkpoint or settings.extract.source):
        if "train.epochs" in origin:
            training.require_settings(run / "checkpoints", dict(origin), settings.train, seed=settings.seed)
        else:  # a record of an earlier version
            training.require_same(run / "checkpoints", None, settings.train, seed=settings.seed)
    return recorded


def _compared(settings: config.Settings) -> list[str]:
    """Settings to be compared as they are: not those of a training, nor where something lies."""
    if settings.extract.source:
        return list(_IMPORTED)
    names = config.AS_BEFORE | config.behind(settings, "maps")
    return [name for name in names if not name.startswith("train.") and name not in _LOCATIONS]


def _other_content(recorded: Record, settings: config.Settings, weights: str | None) -> str | None:
    """Name of what has another content than that of the recorded maps; None where it is the same, or not there."""
    if settings.extract.source:
        now = identity(settings, None, None)
        return next((n for n in ("source", "source content") if n in now and now[n] != recorded.identity.get(n)), None)
    if weights is not None:
        return "weights" if recorded.identity.get("weights") != weights[:16] else None
    return "weights" if recorded.origin.get("model.checkpoint") != settings.model.checkpoint else None


def _by_name(settings: Any) -> dict[str, Any]:
    """Settings of an identity by their names, which earlier versions left out."""
    if isinstance(settings, dict):
        return settings
    names = _IMPORTED if len(settings) == len(_IMPORTED) else ("extract.tap", "extract.layers", "extract.dtype")
    return dict(zip(names, settings, strict=False))


def _tapped(said: Any) -> Tapped:
    """What is recorded of a layer: earlier versions kept the description alone."""
    return Tapped(said) if isinstance(said, str) else Tapped(**said)


def _modified(source: Path) -> int:
    """When a file, or any file of a Zarr array, was last written, in nanoseconds."""
    files = source.rglob("*") if source.is_dir() else [source]
    return max((path.stat().st_mtime_ns for path in files if path.is_file()), default=0)


def _written(value: object) -> object:
    """A setting's value as it is written on the command line."""
    return "null" if value is None else value
