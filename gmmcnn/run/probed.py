"""What is known of the probe samples without the data set: kept in the run folder, under the probe set's digest.

    RUN/probe/FINGERPRINT.npz      table of the samples, thumbnails, class names
    RUN/probe/digests.json         SHA-256 of these files

So tables and the page about a run need nothing but its folder.
"""

import json
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gmmcnn.data.probe import ProbeSet, thumbnails
from gmmcnn.errors import StoreError, StoreNotFoundError
from gmmcnn.files import add_digest, arrays_in, file_name, read_digests, require_as_recorded, write_arrays
from gmmcnn.filters.fits import Fits
from gmmcnn.names import command

FOLDER = "probe"


@dataclass(frozen=True, eq=False)
class Probed:
    """Probe samples without their images.

    Attributes
    ----------
    known : DataFrame
        One row per sample, as in :class:`~gmmcnn.data.probe.ProbeSet`.
    thumbnails : (S, h, w) or (S, h, w, 3) uint8
    class_names : tuple of str, or None
        None where nothing is known of the classes.
    """

    known: pd.DataFrame
    thumbnails: NDArray[np.uint8]
    class_names: tuple[str, ...] | None


def keep(run: Path, probe: ProbeSet, class_names: tuple[str, ...]) -> None:
    """Write what is known of a probe set into a run folder, unless it lies there already, whole."""
    try:
        read(run, probe.fingerprint)
    except StoreError:
        about = {"of": probe.fingerprint, "samples": probe.samples.to_json(orient="table"), "class_names": class_names}
        arrays = {"about": np.array(json.dumps(about)), "thumbnails": thumbnails(probe.images)}
        path = path_of(run, probe.fingerprint)
        write_arrays(path, arrays, compressed=True)
        add_digest(path)
    else:
        if not is_recorded(run, probe.fingerprint):
            add_digest(path_of(run, probe.fingerprint))


def read(run: Path, fingerprint: str) -> Probed:
    """Read what :func:`keep` wrote.

    Raises
    ------
    StoreNotFoundError
        It is not there.
    StoreError
        The file is damaged, or of other samples.
    """
    path, again = path_of(run, fingerprint), command("extract", run)
    if not path.exists():
        raise StoreNotFoundError(f"{path}: missing; write it: {again}")
    require_as_recorded(path)
    with arrays_in(path, remedy=f"delete it and write it again: {again}") as arrays:
        about = json.loads(str(arrays["about"]))
        if about.get("of", fingerprint) != fingerprint:
            raise ValueError(f"it is of the probe samples {about['of']}")
        known = pd.read_json(StringIO(about["samples"]), orient="table").rename_axis(None)
        return Probed(known, arrays["thumbnails"], tuple(about["class_names"]))


def is_recorded(run: Path, fingerprint: str) -> bool:
    """Whether the digest of what :func:`keep` wrote is there: a version before these wrote none."""
    path = path_of(run, fingerprint)
    return path.name in (read_digests(path.parent) or {})


def unknown(fits: Fits) -> Probed:
    """Samples of imported maps, of which only the batch is known."""
    batch = np.repeat(np.arange(fits.n_batches), fits.n_samples)
    return Probed(pd.DataFrame({"batch": batch, "label": pd.NA}), np.empty((0, 1, 1), np.uint8), None)


def path_of(run: Path, fingerprint: str) -> Path:
    """File of what is known of a probe set."""
    return run / FOLDER / f"{file_name(fingerprint)}.npz"
