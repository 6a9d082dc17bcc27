"""What a disk refuses: told in one line with the file and a way on, and foreseen where it can be.

Whichever library writes, an error of the operating system is somewhere in the chain of causes.
"""

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor, nn

from gmmcnn.config import Settings
from gmmcnn.data.probe import ProbeSet
from gmmcnn.errors import ConfigurationError, DiskError, GmmcnnError, chain
from gmmcnn.featuremaps.taps import Taps
from gmmcnn.names import command

_WHAT = {
    errno.ENOSPC: "no space is left on its disk",
    errno.EDQUOT: "the quota on its disk is used up",
    errno.EFBIG: "its file system takes no file of that size",
    errno.EIO: "the disk failed (input/output error)",
    errno.EROFS: "its disk is mounted read-only",
    errno.ESTALE: "the network file system has lost it (stale file handle)",
    errno.ETIMEDOUT: "the network file system does not answer",
    errno.EACCES: "permission is denied",
    errno.EPERM: "it may not be written",
}
_REMEDY = {
    errno.ENOSPC: "free some",
    errno.EDQUOT: "free some, or ask for more",
    errno.EIO: "copy the folder to another disk (task=verify says what of it is whole)",
    errno.ESTALE: "mount it again",
}
_FULL = (errno.ENOSPC, errno.EDQUOT)
_LEAST_COMPRESSED = 0.1
"""Of the bytes of feature maps, what a store takes at least: they are mostly zeros after a ReLU."""
_OURS = (errno.EACCES, errno.EPERM, errno.EROFS)
"""Numbers of errors that our own messages tell already."""


def told(error: Exception, folder: Path, task: str) -> DiskError | None:
    """What to say of an error that ended the work in a run folder, if the disk is behind it."""
    found = next(_of_the_system(error), None)
    if found is None or (isinstance(error, GmmcnnError) and found.errno in _OURS):
        return None
    number = found.errno or 0
    path = found.filename or folder
    free = f" ({_size(shutil.disk_usage(folder).free)} free)" if number in _FULL else ""
    remedy = _REMEDY.get(number, "mend that, or choose another folder")
    return DiskError(
        f"{path}: {_WHAT[number]}{free}; {remedy}, and go on where it stopped with: {command(task, folder)}"
    )


def require_room(folder: Path, needed: dict[str, float]) -> None:
    """Raise ConfigurationError if a disk has less room than work will need at least.

    Parameters
    ----------
    folder : Path
        Need not exist yet.
    needed : dict
        What is written → bytes.
    """
    place = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free, total = shutil.disk_usage(place).free, sum(needed.values())
    if total > free:
        parts = ", ".join(f"{what} {_size(n_bytes)}" for what, n_bytes in needed.items())
        raise ConfigurationError(
            f"{folder}: {_size(free)} are free on its disk, and about {_size(total)} are needed at least ({parts}); "
            "free some, choose another folder with run=, or keep less: extract.keep_maps=none, or fewer epochs in "
            "train.checkpoint_epochs"
        )


def needed(settings: Settings, network: nn.Module, taps: Taps, probe: ProbeSet) -> dict[str, float]:
    """Bytes that a run will write, at least: what is written → bytes."""
    is_trained = not settings.model.checkpoint
    n_checkpoints = len(settings.train.kept_epochs) if is_trained else 1
    state = sum(value.nbytes for value in network.state_dict().values() if isinstance(value, Tensor))
    gmm, dims, n_filters = settings.gmm, settings.pca.dims, sum(tap.n_filters for tap in taps.analysed)
    a_sweep = 2 * probe.n_samples + 25 * (gmm.k_max - gmm.k_min + 1) + 8 * gmm.k_max * (1 + dims + dims**2)
    a_fit = 4 * probe.n_samples * dims + gmm.repeats * a_sweep
    maps = sum(4 * tap.n_filters * tap.height * tap.width for tap in taps.analysed) * len(probe.samples)
    stored = {"all": n_checkpoints, "last": 1, "none": 0}[settings.extract.keep_maps]
    return {
        "weights": state * (n_checkpoints + 2) * is_trained,
        "fits": a_fit * n_filters * probe.n_batches * n_checkpoints,
        "feature maps": _LEAST_COMPRESSED * maps * stored,
    }


def _of_the_system(error: BaseException) -> Iterator[OSError]:
    """Errors of the operating system behind an error, those that name a file first."""
    found = [one for one in chain(error) if isinstance(one, OSError) and one.errno in _WHAT]
    yield from sorted(found, key=lambda one: one.filename is None)


def _size(n_bytes: float) -> str:
    unit, name = next(((u, n) for u, n in ((1e9, "GB"), (1e6, "MB")) if n_bytes >= u), (1e3, "kB"))
    return f"{n_bytes / unit:.1f} {name}"
