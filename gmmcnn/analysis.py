"""The outcome for one network: tables, a page, a file; thresholds can be changed without fitting anything again."""

import json
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gmmcnn import config
from gmmcnn.errors import ConfigurationError, StoreNotFoundError
from gmmcnn.fits import Fits, LayerFits
from gmmcnn.outliers import find_outliers
from gmmcnn.reading import arrays_in
from gmmcnn.screening import Screening, saturation, screen

_FORMAT = "gmmcnn-analysis-1"


@dataclass(frozen=True, eq=False)
class Analysis:
    """Fits of all filters of a network on one probe set, screened.

    Attributes
    ----------
    fits : Fits
        PCA scores and clusterings of every filter.
    samples : DataFrame
        One row per probe sample: ``batch`` and, where known, ``label``, ``dataset_index``, ``noisy_label``,
        ``planted``.
    thumbnails : (S, h, w) or (S, h, w, 3) uint8
        The probe images, small.
    settings : config.Screen
        Thresholds in force.
    skipped : tuple of (layer, reason)
        Convolutions that were not analysed.
    name : str
        Title of the report.
    """

    fits: Fits
    samples: pd.DataFrame
    thumbnails: NDArray[np.uint8]
    settings: config.Screen
    skipped: tuple[tuple[str, str], ...] = ()
    name: str = "analysis"

    @cached_property
    def screening(self) -> Screening:
        """Outcome of the screening with the thresholds in force."""
        return screen(self.fits, self.settings)

    @property
    def filters(self) -> pd.DataFrame:
        """One row per filter; columns as in ``filters.csv``."""
        return self.screening.filters

    @cached_property
    def outliers(self) -> pd.DataFrame:
        """One row per outlier sample, with what is known about the sample."""
        found = find_outliers(self.fits, self.screening, self.settings.small_cluster)
        return found.join(self.samples.drop(columns="batch"), on="sample")

    @property
    def saturation(self) -> tuple[float, str]:
        """Ratio λ·K_max/N, and what to think of it."""
        return saturation(self.fits.n_samples, self.fits.k_max, self.settings.small_cluster)

    def with_thresholds(self, **thresholds: object) -> "Analysis":
        """Return the same fits under other thresholds (names of :class:`gmmcnn.config.Screen`)."""
        valid = [field.name for field in fields(config.Screen)]
        for name in thresholds:
            if name not in valid:
                raise ConfigurationError(f"{name}: no such threshold; expected one of {', '.join(valid)}")
        return replace(self, settings=replace(self.settings, **thresholds))  # type: ignore[arg-type]

    def screen(self, **thresholds: object) -> pd.DataFrame:
        """Table of filters under other thresholds; nothing is refitted and this analysis stays as it is."""
        return self.with_thresholds(**thresholds).filters

    def to_html(self, path: str | Path) -> Path:
        """Write the report page, one file that opens offline."""
        from gmmcnn.report.compose import page_of

        path = Path(path)
        path.write_text(page_of(self), encoding="utf-8")
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
            "samples": self.samples.to_json(orient="table"),
        }
        arrays = {
            f"{number}.{field.name}": getattr(layer, field.name)
            for number, layer in enumerate(self.fits.layers.values())
            for field in fields(LayerFits)
        }
        aside = path.with_name(path.name + ".partial")
        with aside.open("wb") as file:
            np.savez_compressed(
                file, allow_pickle=False, about=np.array(json.dumps(about)), thumbnails=self.thumbnails, **arrays
            )
        aside.replace(path)
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
            samples=pd.read_json(StringIO(about["samples"]), orient="table").rename_axis(None),
            thumbnails=arrays["thumbnails"],
            settings=config.Screen(**about["settings"]),
            skipped=tuple((layer, reason) for layer, reason in about["skipped"]),
            name=about["name"],
        )
