"""From an analysis to the content of its page."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from gmmcnn.analysis import Analysis
from gmmcnn.report.content import ClusterPlot, ReportContent
from gmmcnn.report.page import render
from gmmcnn.screening import cluster_sizes
from gmmcnn.summary import findings

MAX_PLOTS = 40


def page_of(
    analysis: Analysis,
    *,
    facts: dict[str, str] | None = None,
    metrics: pd.DataFrame | None = None,
    masking: pd.DataFrame | None = None,
    class_names: list[str] | None = None,
    notes: list[str] | None = None,
) -> str:
    """Complete HTML page of an analysis.

    Parameters
    ----------
    analysis : Analysis
        What to show.
    facts : dict, optional
        Settings and provenance beyond those of the analysis, in the order in which they are shown.
    metrics : DataFrame, optional
        One row per epoch, as in ``metrics.csv``.
    masking : DataFrame, optional
        What :func:`gmmcnn.pruning.compare_masks` returns.
    class_names : list of str, optional
        Names of the labels.
    notes : list of str, optional
        Warnings beyond those of the analysis.
    """
    history = metrics if metrics is None else metrics.dropna(subset="flagged_per_batch")
    plots = list(_cluster_plots(analysis))
    shown = sorted({int(s) for plot in plots for s in plot.samples} | set(analysis.outliers["sample"].tolist()))
    labels = analysis.samples["label"]
    content = ReportContent(
        title=analysis.name,
        facts=_own_facts(analysis) | (facts or {}),
        findings=findings(analysis, history, masking),
        warnings=[analysis.saturation[1], *(notes or [])],
        metrics=metrics,
        filters=analysis.filters,
        outliers=analysis.outliers,
        clusters=plots,
        images={sample: analysis.thumbnails[sample] for sample in shown},
        class_names=class_names,
        masking=masking,
        skipped=list(analysis.skipped),
        targets={sample: int(labels[sample]) for sample in shown if pd.notna(labels[sample])},
    )
    return render(content)


def _own_facts(analysis: Analysis) -> dict[str, str]:
    fits, screen = analysis.fits, analysis.settings
    return {
        "Filters": f"{fits.n_filters} in {len(fits.layers)} layers",
        "Probe set": f"{fits.n_batches} × {fits.n_samples} samples",
        "Components tried": f"K = {fits.k_min} … {fits.k_max}",
        "Small cluster (λ)": f"at most {screen.small_cluster} samples",
        "Small clusters needed (α)": str(screen.min_small_clusters),
        "CH over average (β)": f"> {screen.ch_ratio} × {screen.average} of the {screen.scope}",
        "Activation over average (θ)": f"> {screen.activation_ratio} × mean of the {screen.scope}",
        "Flag frequency": f">= {screen.min_frequency} of the probe batches",
    }


def _cluster_plots(analysis: Analysis) -> Iterator[ClusterPlot]:
    """One plot for each of the most flagged anomaly filters: the first batch that flags it."""
    filters = analysis.filters[analysis.filters["anomalous"]]
    flagged = analysis.screening.batches[analysis.screening.batches["flagged"]]
    first = flagged.drop_duplicates(["layer", "filter"]).set_index(["layer", "filter"])["batch"]
    fits = analysis.fits
    for row in filters.nlargest(MAX_PLOTS, "flag_frequency").itertuples():
        layer, batch = fits.layers[row.layer], int(first[row.layer, row.filter])
        labels = layer.labels[row.filter, batch]
        sizes = cluster_sizes(labels, layer.weights.shape[2])
        yield ClusterPlot(
            layer=row.layer,
            filter=int(row.filter),
            batch=batch,
            scores=layer.scores[row.filter, batch],
            labels=labels,
            samples=batch * fits.n_samples + np.arange(fits.n_samples),
            small=(sizes > 0) & (sizes <= analysis.settings.small_cluster),
        )
