"""From an analysis, or those of a whole run, to its page."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gmmcnn import config
from gmmcnn.filters.fits import Fits
from gmmcnn.filters.outcome import Outcome
from gmmcnn.filters.screening import judge
from gmmcnn.report.content import ReportContent
from gmmcnn.report.findings import findings
from gmmcnn.report.page import render
from gmmcnn.report.scatter import scatters
from gmmcnn.report.thresholds import places, ranks, sliders_around
from gmmcnn.report.views import plural

_MOST_CLUSTERINGS = 1_000_000
"""Over all epochs that follow the reader's thresholds: about as many bytes, before they are compressed."""


def page_of(analysis: Outcome, **about: Any) -> str:
    """Complete HTML page of an analysis; parameters as of :func:`content_of`."""
    return render(content_of(analysis, **about))


def content_of(
    analysis: Outcome,
    *,
    earlier: Mapping[int, Outcome] | None = None,
    facts: dict[str, str] | None = None,
    metrics: pd.DataFrame | None = None,
    masking: pd.DataFrame | None = None,
    class_names: list[str] | None = None,
    notes: list[str] | None = None,
    command: str | None = None,
    epoch: int | None = None,
) -> ReportContent:
    """Gather what a page of an analysis shows.

    Parameters
    ----------
    analysis : Outcome
        What to show.
    earlier : mapping of epoch to Outcome, optional
        The same network at earlier epochs, ascending; left out where they would make the page too large.
    facts : dict, optional
        Settings and provenance beyond those of the analysis, in the order in which they are shown.
    metrics : DataFrame, optional
        One row per epoch, as in ``metrics.csv``.
    masking : DataFrame, optional
        What :func:`gmmcnn.pruning.masks.compare_masks` returns.
    class_names : list of str, optional
        Names of the labels.
    notes : list of str, optional
        Warnings beyond those of the analysis.
    command : str, optional
        What screens the same fits with other thresholds, to be followed by them.
    epoch : int, optional
        Of the analysis.
    """
    fits, settings = analysis.fits, analysis.settings
    labels = analysis.known["label"]
    sliders = sliders_around(settings, analysis.small_cluster)
    shown: dict[int | None, Outcome] = dict([*_with_room(earlier or {}, fits).items(), (epoch, analysis)])
    comment = f"Size of a small cluster over that of an average one: {analysis.saturation.comment}."
    saturated = analysis.saturation.is_saturated
    return ReportContent(
        title=analysis.name,
        facts=_own_facts(analysis) | (facts or {}),
        findings=findings(analysis, metrics, masking, class_names),
        warnings=[*([comment] if saturated else []), *(notes or [])],
        notes=[] if saturated else [comment],
        metrics=metrics,
        filters=analysis.filters,
        outliers=analysis.outliers,
        images=dict(enumerate(analysis.thumbnails)),
        class_names=class_names,
        masking=masking,
        skipped=list(analysis.skipped),
        samples=analysis.samples,
        targets={sample: int(label) for sample, label in labels.dropna().items()},
        sliders=sliders,
        places=places(sliders, settings, analysis.small_cluster),
        ranks={number: ranks(outcome.fits, settings, sliders) for number, outcome in shown.items()},
        scatters=scatters(fits, _telling(fits, settings)),
        index_by_k=np.concatenate([_median_index(layer.calinski_harabasz) for layer in fits.layers.values()]),
        n_batches=fits.n_batches,
        n_samples=fits.n_samples,
        k_min=fits.k_min,
        command=command,
    )


def _with_room(earlier: Mapping[int, Outcome], fits: Fits) -> Mapping[int, Outcome]:
    """Earlier epochs, if the page has room for all of them and they are of the same filters and batches."""
    shape = (fits.n_filters, fits.n_batches, fits.n_repeats)
    alike = all((o.fits.n_filters, o.fits.n_batches, o.fits.n_repeats) == shape for o in earlier.values())
    return earlier if alike and (1 + len(earlier)) * int(np.prod(shape)) <= _MOST_CLUSTERINGS else {}


def _telling(fits: Fits, settings: config.Screen) -> NDArray[np.int64]:
    """(F,) of each filter the first clustering that flags it, else the first that exists."""
    judged = judge(fits, settings)
    worth = np.where(judged["flagged"], 2, np.where(judged["n_components"] > 0, 1, 0))
    return worth.reshape(fits.n_filters, -1).argmax(axis=1)


def _median_index(index: NDArray[np.float64]) -> NDArray[np.float32]:
    """(F, B, R, S) to (F, S): median over clusterings, NaN where all are undefined."""
    merged = index.reshape(len(index), -1, index.shape[-1])
    known = ~np.isnan(merged)
    ascending = np.sort(merged, axis=1)  # NaN last
    middle = np.maximum(known.sum(axis=1) - 1, 0) // 2
    median = np.take_along_axis(ascending, middle[:, None], axis=1)[:, 0]
    return np.minimum(median, np.finfo(np.float32).max, where=~np.isnan(median), out=median).astype(np.float32)


def _own_facts(analysis: Outcome) -> dict[str, str]:
    fits, screen = analysis.fits, analysis.settings
    return {
        "Filters": f"{fits.n_filters:,} in {plural(len(fits.layers), 'layer')}",
        "Probe set": f"{plural(fits.n_batches, 'batch', 'batches')} of {plural(fits.n_samples, 'sample')}",
        "Clusters tried": f"{fits.k_min} to {fits.k_max} for each filter and batch",
        "Clusterings": f"{fits.n_batches * fits.n_repeats:,} of each filter",
        "Small cluster (λ)": f"at most {plural(analysis.small_cluster, 'sample')}",
        "Unbalanced (α)": f"at least {plural(screen.min_small_clusters, 'small cluster')}",
        "Separated (β)": f"CH index above {screen.ch_ratio:g} × the {screen.average} of the {screen.scope}",
        "Active (θ)": f"mean activation above {screen.activation_ratio:g} × the mean of the {screen.scope}",
        "Anomalous": f"flagged in at least {100 * screen.min_frequency:g} % of the batches",
    }
