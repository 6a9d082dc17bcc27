"""From an analysis, or a whole run, to its page."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from gmmcnn.filters.outcome import Outcome
from gmmcnn.filters.screening import cluster_sizes
from gmmcnn.report.content import ClusterPlot, ReportContent
from gmmcnn.report.findings import findings
from gmmcnn.report.page import render
from gmmcnn.report.views import plural


def page_of(
    analysis: Outcome,
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
    analysis : Outcome
        What to show.
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
    """
    labels = analysis.known["label"]
    content = ReportContent(
        title=analysis.name,
        facts=_own_facts(analysis) | (facts or {}),
        findings=findings(analysis, metrics, masking),
        warnings=[f"Size of a small cluster over that of an average one: {analysis.saturation[1]}.", *(notes or [])],
        metrics=metrics,
        filters=analysis.filters,
        outliers=analysis.outliers,
        clusters=list(_cluster_plots(analysis)),
        images=dict(enumerate(analysis.thumbnails)),
        class_names=class_names,
        masking=masking,
        skipped=list(analysis.skipped),
        samples=analysis.samples,
        targets={sample: int(label) for sample, label in labels.dropna().items()},
    )
    return render(content)


def _own_facts(analysis: Outcome) -> dict[str, str]:
    fits, screen = analysis.fits, analysis.settings
    return {
        "Filters": f"{fits.n_filters:,} in {plural(len(fits.layers), 'layer')}",
        "Probe set": f"{plural(fits.n_batches, 'batch', 'batches')} of {plural(fits.n_samples, 'sample')}",
        "Clusters tried": f"{fits.k_min} to {fits.k_max} for each filter and batch",
        "Small cluster (λ)": f"at most {plural(analysis.small_cluster, 'sample')}",
        "Unbalanced (α)": f"at least {plural(screen.min_small_clusters, 'small cluster')}",
        "Separated (β)": f"CH index above {screen.ch_ratio:g} × the {screen.average} of the {screen.scope}",
        "Active (θ)": f"mean activation above {screen.activation_ratio:g} × the mean of the {screen.scope}",
        "Anomalous": f"flagged in at least {100 * screen.min_frequency:g} % of the batches",
    }


def _cluster_plots(analysis: Outcome) -> Iterator[ClusterPlot]:
    """One plot for each anomaly filter: the first clustering that flags it."""
    filters = analysis.filters[analysis.filters["anomalous"]]
    flagged = analysis.screening.batches[analysis.screening.batches["flagged"]]
    first = flagged.drop_duplicates(["layer", "filter"]).set_index(["layer", "filter"])[["batch", "repeat"]]
    fits = analysis.fits
    for row in filters.itertuples():
        layer = fits.layers[row.layer]
        batch, repeat = (int(number) for number in first.loc[(row.layer, row.filter)])
        labels = layer.labels[row.filter, batch, repeat]
        sizes = cluster_sizes(labels, layer.weights.shape[-1])
        yield ClusterPlot(
            layer=row.layer,
            filter=int(row.filter),
            batch=batch,
            scores=layer.scores[row.filter, batch],
            labels=labels,
            samples=batch * fits.n_samples + np.arange(fits.n_samples),
            small=(sizes > 0) & (sizes <= analysis.small_cluster),
        )
