"""The outcome for one network: tables, a page, a file; thresholds can be changed without fitting anything again."""

import json
from dataclasses import asdict, dataclass, fields
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd

from gmmcnn import config
from gmmcnn.errors import StoreNotFoundError
from gmmcnn.files import arrays_in, write_arrays, write_text
from gmmcnn.filters.fits import Fits, LayerFits
from gmmcnn.filters.outcome import Outcome
from gmmcnn.report.compose import page_of

_FORMAT = "gmmcnn-analysis-2"


@dataclass(frozen=True, eq=False)
class Analysis(Outcome):
    """An outcome that can be kept: written to a page, or to a file and read again."""

    def to_html(self, path: str | Path) -> Path:
        """Write the report page, one file that opens offline."""
        path = Path(path)
        write_text(path, page_of(self))
        return path

    def save(self, path: str | Path) -> Path:
        """Write everything to one ``.npz`` file, which :func:`load` reads."""
        path = Path(path)
        about = {
            "format": _FORMAT,
            "name": self.name,
            "settings": asdict(self.settings),
            "skipped": self.skipped,
            "layers": list(self.fits.layers),
            "k_min": self.fits.k_min,
            "k_max": self.fits.k_max,
            "samples": self.known.to_json(orient="table"),
        }
        arrays = {
            f"{number}.{field.name}": getattr(layer, field.name)
            for number, layer in enumerate(self.fits.layers.values())
            for field in fields(LayerFits)
        }
        arrays |= {"about": np.array(json.dumps(about)), "thumbnails": self.thumbnails}
        write_arrays(path, arrays, compressed=True)
        return path


def load(path: str | Path) -> Analysis:
    """Read what :meth:`Analysis.save` wrote.

    Raises
    ------
    StoreNotFoundError
        There is no such file.
    StoreError
        The file is no saved analysis, or damaged.
    """
    path = Path(path)
    if not path.exists():
        raise StoreNotFoundError(f"{path}: no such file; expected what Analysis.save wrote")
    with arrays_in(path, remedy="expected what Analysis.save wrote") as arrays:
        about = json.loads(str(arrays["about"]))
        if about["format"] != _FORMAT:
            raise ValueError(about["format"])
        layers = {
            layer: LayerFits(**{field.name: arrays[f"{number}.{field.name}"] for field in fields(LayerFits)})
            for number, layer in enumerate(about["layers"])
        }
        return Analysis(
            fits=Fits(layers, about["k_min"], about["k_max"]),
            known=pd.read_json(StringIO(about["samples"]), orient="table").rename_axis(None),
            thumbnails=arrays["thumbnails"],
            settings=config.Screen(**about["settings"]),
            skipped=tuple((layer, reason) for layer, reason in about["skipped"]),
            name=about["name"],
        )
