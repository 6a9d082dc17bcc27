"""What is known about each filter of a network: its fits, screened by thresholds that can be changed at will."""

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gmmcnn import config
from gmmcnn.errors import ConfigurationError
from gmmcnn.filters.fits import Fits
from gmmcnn.filters.outliers import find_outliers
from gmmcnn.filters.samples import score_samples
from gmmcnn.filters.screening import Saturation, Screening, saturation, screen


@dataclass(frozen=True, eq=False, repr=False)
class Outcome:
    """Fits of all filters of a network on one probe set, screened.

    Attributes
    ----------
    fits : Fits
        PCA scores and clusterings of every filter.
    known : DataFrame
        What is known about the probe samples beforehand, one row each: ``batch`` and, where known, ``label``,
        ``dataset_index``, ``noisy_label``, ``planted``.
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
    known: pd.DataFrame
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
        found = find_outliers(self.fits, self.screening, self.small_cluster)
        return found.join(self.known.drop(columns="batch"), on="sample")

    @cached_property
    def samples(self) -> pd.DataFrame:
        """One row per probe sample, with its scores; columns as in ``samples.csv``.

        ``sample`` (its number in the probe set), ``batch``, ``label``; the scores of
        :func:`gmmcnn.filters.samples.score_samples`; ``n_filters`` that single it out as an outlier; and what else is
        known about it.
        """
        scores = score_samples(self.fits, self.known["label"], self.settings.min_active_share)
        single_out = self.outliers.set_index("sample")["n_filters"].reindex(self.known.index, fill_value=0)
        scores.insert(scores.columns.get_loc("density") + 1, "n_filters", single_out)
        first = ["batch", "label"]
        table = self.known[first].join(scores).join(self.known.drop(columns=first))
        return table.rename_axis("sample").reset_index()

    @property
    def small_cluster(self) -> int:
        """λ in force: the one of the settings, or what it is where they leave it open."""
        return self.settings.small_cluster_for(self.fits.n_samples, self.fits.k_max)

    @property
    def saturation(self) -> Saturation:
        """Ratio λ·K_max/N, and what to think of it."""
        return saturation(self.fits.n_samples, self.fits.k_max, self.small_cluster)

    def with_thresholds(self, **thresholds: object) -> Self:
        """Return the same fits under other thresholds (names of :class:`gmmcnn.config.Screen`)."""
        valid = [field.name for field in fields(config.Screen)]
        for name in thresholds:
            if name not in valid:
                raise ConfigurationError(f"{name}: no such threshold; expected one of {', '.join(valid)}")
        return replace(self, settings=replace(self.settings, **thresholds))  # type: ignore[arg-type]

    def screen(self, **thresholds: object) -> pd.DataFrame:
        """Table of filters under other thresholds; nothing is refitted and this analysis stays as it is."""
        return self.with_thresholds(**thresholds).filters
