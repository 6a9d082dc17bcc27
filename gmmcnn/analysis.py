"""The outcome for one network: tables, a page, a file; thresholds can be changed without fitting anything again."""

import json
from dataclasses import asdict, dataclass, fields
from html import escape
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd

from gmmcnn import config
from gmmcnn.constants import Status
from gmmcnn.errors import StoreNotFoundError
from gmmcnn.featuremaps.taps import Tapped
from gmmcnn.files import arrays_in, write_arrays, write_text
from gmmcnn.filters.fits import Fits, LayerFits
from gmmcnn.filters.outcome import Outcome
from gmmcnn.report.compose import page_of
from gmmcnn.report.findings import findings
from gmmcnn.report.views import layers, plural

_FORMAT = "gmmcnn-analysis-2"


@dataclass(frozen=True, eq=False, repr=False)
class Analysis(Outcome):
    """An outcome that can be kept: written to a page, or to a file and read again."""

    def __repr__(self) -> str:
        """Five lines: what was clustered, what was found, and whether that means anything."""
        fits, filters = self.fits, self.filters
        n_live, n_anomalous = int((filters["status"] == Status.OK).sum()), int(filters["anomalous"].sum())
        saturated = self.saturation.is_saturated
        lines = (
            f"{type(self).__name__} of {self.name}",
            f"{plural(fits.n_filters, 'filter')} in {plural(len(fits.layers), 'layer')}, {n_live:,} of them live",
            f"{plural(fits.n_batches, 'probe batch', 'probe batches')} of {plural(fits.n_samples, 'sample')}, "
            f"{fits.k_min} to {fits.k_max} clusters",
            f"{n_anomalous:,} anomalous, {plural(len(self.outliers), 'outlier sample')}"
            if not saturated
            else "saturated: chance alone makes small clusters here",
            self.saturation.comment,
        )
        return "\n  ".join(lines)

    def _repr_html_(self) -> str:
        """What a notebook shows: the sentences of :meth:`summary`, and the filters of each layer by kind."""
        headline, *others = (escape(line) for line in self.summary().splitlines())
        items = "".join(f"<li>{line}</li>" for line in others)
        table = pd.DataFrame(layers(self.filters)).to_html(index=False, border=0)
        return f"<p>{escape(self.name)}: <b>{headline}</b></p>\n<ul>{items}</ul>\n{table}"

    def summary(self) -> str:
        """Say what was found in sentences, a line each, the headline first."""
        said = [*findings(self), *(f"Not analysed: {layer}: {reason}." for layer, reason in self.skipped)]
        if not self.saturation.is_saturated:  # the headline has it
            said.insert(1, f"{self.saturation.comment}.")
        return "\n".join(said)

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
            "tapped": {layer: asdict(tapped) for layer, tapped in self.fits.tapped.items()},
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
        tapped = {layer: Tapped(**said) for layer, said in about.get("tapped", {}).items()}  # not in earlier files
        return Analysis(
            fits=Fits(layers, about["k_min"], about["k_max"], tapped),
            known=pd.read_json(StringIO(about["samples"]), orient="table").rename_axis(None),
            thumbnails=arrays["thumbnails"],
            settings=config.Screen(**about["settings"]),
            skipped=tuple((layer, reason) for layer, reason in about["skipped"]),
            name=about["name"],
        )
