"""What is known of the probe samples without the data set: kept in the run folder, under the probe set's digest.

    RUN/probe/FINGERPRINT.npz      table of the samples, thumbnails, class names

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
from gmmcnn.errors import StoreNotFoundError
from gmmcnn.files import arrays_in, file_name, write_arrays
from gmmcnn.filters.fits import Fits
from gmmcnn.names import command


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
    """Write what is known of a probe set into a run folder, unless it lies there already."""
    path = _path(run, probe.fingerprint)
    if not path.exists():
        about = {"samples": probe.samples.to_json(orient="table"), "class_names": class_names}
        arrays = {"about": np.array(json.dumps(about)), "thumbnails": thumbnails(probe.images)}
        write_arrays(path, arrays, compressed=True)


def read(run: Path, fingerprint: str) -> Probed:
    """Read what :func:`keep` wrote.

    Raises
    ------
    StoreNotFoundError
        It is not there.
    StoreError
        The file is damaged.
    """
    path, again = _path(run, fingerprint), command("extract", run)
    if not path.exists():
        raise StoreNotFoundError(f"{path}: missing; write it: {again}")
    with arrays_in(path, remedy=f"delete it and write it again: {again}") as arrays:
        about = json.loads(str(arrays["about"]))
        known = pd.read_json(StringIO(about["samples"]), orient="table").rename_axis(None)
        return Probed(known, arrays["thumbnails"], tuple(about["class_names"]))


def unknown(fits: Fits) -> Probed:
    """Samples of imported maps, of which only the batch is known."""
    batch = np.repeat(np.arange(fits.n_batches), fits.n_samples)
    return Probed(pd.DataFrame({"batch": batch, "label": pd.NA}), np.empty((0, 1, 1), np.uint8), None)


def _path(run: Path, fingerprint: str) -> Path:
    return run / "probe" / f"{file_name(fingerprint)}.npz"
