"""From an analysis, or a whole run, to its page."""

from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version

import numpy as np
import pandas as pd

from gmmcnn import activations, config
from gmmcnn.analysis import Analysis
from gmmcnn.console import say
from gmmcnn.pruning import load_mask
from gmmcnn.report.content import ClusterPlot, ReportContent
from gmmcnn.report.page import render
from gmmcnn.report.views import plural
from gmmcnn.run_folder import Run, write_aside
from gmmcnn.screening import cluster_sizes
from gmmcnn.summary import findings


def write(job: Run) -> None:
    """Write the page on a run's network as it is now."""
    analysis = activations.analysis(job, job.checkpoints[-1])
    job.require_own_training()
    page = page_of(
        analysis,
        facts=_settings_as_facts(job.settings),
        metrics=job.metrics,
        masking=_masking(job, analysis),
        class_names=None if job.settings.extract.source else list(job.data.class_names),
    )
    path = job.folder / "report.html"
    write_aside(path, page)
    say(f"Report: {path}")


def _masking(job: Run, analysis: Analysis) -> pd.DataFrame | None:
    """What masking does to the network; None where nothing was masked, or other filters than are anomalous now."""
    mask, masking = job.folder / "mask.json", job.folder / "masking.csv"
    if not (mask.exists() and masking.exists()) or load_mask(mask) != analysis.screening.anomalous:
        return None
    return job.table(masking.name, "prune", ("mask", "n_filters"))


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
    labels = analysis.samples["label"]
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
        targets={sample: int(label) for sample, label in labels.dropna().items()},
    )
    return render(content)


def _own_facts(analysis: Analysis) -> dict[str, str]:
    fits, screen = analysis.fits, analysis.settings
    return {
        "Filters": f"{fits.n_filters:,} in {plural(len(fits.layers), 'layer')}",
        "Probe set": f"{plural(fits.n_batches, 'batch', 'batches')} of {plural(fits.n_samples, 'sample')}",
        "Clusters tried": f"{fits.k_min} to {fits.k_max} for each filter and batch",
        "Small cluster (λ)": f"at most {plural(screen.small_cluster, 'sample')}",
        "Unbalanced (α)": f"at least {plural(screen.min_small_clusters, 'small cluster')}",
        "Separated (β)": f"CH index above {screen.ch_ratio:g} × the {screen.average} of the {screen.scope}",
        "Active (θ)": f"mean activation above {screen.activation_ratio:g} × the mean of the {screen.scope}",
        "Anomalous": f"flagged in at least {100 * screen.min_frequency:g} % of the batches",
    }


def _cluster_plots(analysis: Analysis) -> Iterator[ClusterPlot]:
    """One plot for each anomaly filter: the first clustering that flags it."""
    filters = analysis.filters[analysis.filters["anomalous"]]
    flagged = analysis.screening.batches[analysis.screening.batches["flagged"]]
    first = flagged.drop_duplicates(["layer", "filter"]).set_index(["layer", "filter"])[["batch", "repeat"]]
    fits = analysis.fits
    for row in filters.itertuples():
        layer = fits.layers[row.layer]
        batch, repeat = (int(number) for number in first.loc[(row.layer, row.filter)])
        labels = layer.labels[row.filter, batch * fits.repeats + repeat]
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


def _settings_as_facts(settings: config.Settings) -> dict[str, str]:
    """Settings that a reader of the report asks for."""
    train = settings.train
    facts = {"Seed": str(settings.seed), "Engine": settings.engine.name, "Feature maps": settings.extract.tap}
    if not (settings.model.checkpoint or settings.extract.source):
        facts["Training"] = (
            f"{train.epochs} epochs of {train.optimizer}, "
            f"learning rate {train.learning_rate:g}, batches of {train.batch_size}"
        )
    gmm = {key: value for key, value in asdict(settings.gmm).items() if key not in ("k_min", "k_max")}
    facts["Mixtures"] = ", ".join(f"{key} {value:g}" for key, value in gmm.items())
    return facts | {name: version(name) for name in ("gmmcnn", "torch")}
