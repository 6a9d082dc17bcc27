"""What a checkpoint's feature maps were made from: recorded with them, and compared before they are used.

Settings are given anew with every task, so those of a later task may speak of other weights, samples or maps than the
ones that lie in the folder. Digests of what was really used tell; the settings that led to it are recorded for the
error's message alone.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from gmmcnn import config
from gmmcnn.errors import ConfigurationError, StoreNotFoundError
from gmmcnn.featuremaps.stream import fingerprint
from gmmcnn.files import read_json, write_json
from gmmcnn.run.folder import Checkpoint, Run


def identity(job: Run, checkpoint: Checkpoint) -> dict[str, Any]:
    """Everything that maps made now would depend on, by the name under which an error reports it.

    The content of a source of imported maps is left out where it is not there any more.
    """
    settings, probe = job.settings.extract, job.settings.probe
    if checkpoint.weights is None:
        source = Path(str(settings.source)).absolute()
        content = {"source content": _modified(source)} if source.exists() else {}
        return {"source": str(source)} | content | {"settings": [settings.dtype, probe.samples]}
    return {
        "weights": fingerprint(job.load_weights(checkpoint))[:16],
        "probe samples": job.probe.fingerprint,
        "settings": [settings.tap, settings.layers, settings.dtype, probe.samples],
    }


def differences(checkpoint: Checkpoint, identity: dict[str, Any]) -> list[str]:
    """Names of what the recorded maps do not share with an identity: all of them, where no maps are recorded."""
    recorded = read(checkpoint).get("identity", {})
    return [name for name, value in identity.items() if recorded.get(name) != value]


def require_own(job: Run, checkpoint: Checkpoint) -> dict[str, Any]:
    """Record of a checkpoint's maps, if they are those of the settings in force.

    Raises
    ------
    StoreNotFoundError
        No maps are recorded.
    ConfigurationError
        They are of other weights, probe samples or settings.
    """
    record = read(checkpoint)
    if not record:
        raise StoreNotFoundError(
            f"{checkpoint.taps}: missing, damaged or of another version; first: gmmcnn task=extract run={job.folder}"
        )
    if others := differences(checkpoint, identity(job, checkpoint)):
        now = _origin(job.settings)
        changed = [f"{key}={_written(value)}" for key, value in record["origin"].items() if value != now.get(key)]
        made_with = f" (made with {' '.join(changed)})" if changed else ""
        raise ConfigurationError(
            f"{checkpoint.folder}: holds feature maps of other {' and '.join(others)}{made_with}; "
            f"give what they were made with, or make new ones: gmmcnn task=extract run={job.folder}, then task=fit"
        )
    return record


def read(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the last extraction into a checkpoint's folder recorded; empty where there was none, or it is damaged."""
    record = read_json(checkpoint.taps)
    return record if isinstance(record.get("identity"), dict) and "n_samples" in record else {}


def write(job: Run, checkpoint: Checkpoint, identity: dict[str, Any], record: dict[str, Any]) -> None:
    """Record maps that have just been made."""
    record = {"identity": identity, "origin": _origin(job.settings), **record}
    write_json(checkpoint.taps, record, indent=1)


def _modified(source: Path) -> int:
    """When a file, or any file of a Zarr array, was last written, in nanoseconds."""
    files = source.rglob("*") if source.is_dir() else [source]
    return max((path.stat().st_mtime_ns for path in files if path.is_file()), default=0)


def _origin(settings: config.Settings) -> dict[str, Any]:
    """Settings that maps may depend on, by their names on the command line."""
    groups = {name: asdict(getattr(settings, name)) for name in ("data", "model", "probe", "extract")}
    values = {f"{group}.{key}": value for group, values in groups.items() for key, value in values.items()}
    return {"seed": settings.seed} | values


def _written(value: object) -> object:
    """A setting's value as it is written on the command line."""
    return "null" if value is None else value
