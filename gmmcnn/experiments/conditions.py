"""Under which conditions the claims hold beyond their controls: a search over a grid that is written down beforehand.

In every cell of ``experiment.grid`` the claims H1, H2 and H3 are judged as in the experiments of their own, and H1 for
many things that might be counted, each as rising and as falling with the generalisation gap. So many questions find
something by chance. What looks supported is therefore *confirmed* on as many further seeds, by the same rule; what is
supported there as well, holds. A cell that was judged is not judged again.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pandas as pd
import plotly.express as px

from gmmcnn.analysis import Analysis
from gmmcnn.experiments import gradients, overfitting, pruning
from gmmcnn.experiments.following import judge_over_training
from gmmcnn.experiments.grids import grid, with_cell
from gmmcnn.experiments.intervals import CONFIDENCE
from gmmcnn.experiments.laboratory import Laboratory, Network
from gmmcnn.experiments.outcome import Outcome
from gmmcnn.experiments.statistics import RULE, SUPPORTED, Verdict, estimates_table
from gmmcnn.files import add_digest, name_of, require_as_recorded, write_table
from gmmcnn.filters.fits import cluster_sizes, is_live
from gmmcnn.progress import progress
from gmmcnn.pruning.structural import require_torch_pruning

QUESTION = ["cell", "hypothesis", "measure"]
"""Columns that name one question."""

ALPHA = (1 - CONFIDENCE) / 2
"""How often chance alone finds a claim supported, at most: what it claims has one direction."""

THRESHOLDS: dict[str, dict[str, object]] = {
    "flagged, λ = 2": {"small_cluster": 2},
    "flagged, λ = 10": {"small_cluster": 10},
    "flagged, β = 1.2": {"ch_ratio": 1.2},
    "flagged, averages of the network": {"scope": "network"},
    "flagged, mean CH": {"average": "mean"},
}
"""Counts by other thresholds and averages than those in force."""


def run(laboratory: Laboratory) -> Outcome:
    """Explore every cell, confirm what looks supported, and tell."""
    require_torch_pruning()  # before hours of training, not after them
    cells = list(grid(laboratory.settings.experiment.grid))
    for cell in cells:
        with_cell(laboratory.settings, cell)
    explored = explore(laboratory, {cell: list(CLAIMS) for cell in cells})
    promising = explored[explored["verdict"] == SUPPORTED].drop_duplicates(QUESTION)
    claims = {str(cell): sorted(set(rows["hypothesis"])) for cell, rows in promising.groupby("cell", sort=False)}
    held_out = explore(laboratory, claims, held_out=True)
    confirmed = held_out.merge(promising[QUESTION], on=QUESTION)
    table = pd.concat([explored.assign(stage="explored"), confirmed.assign(stage="held out")], ignore_index=True)
    return Outcome(table, (), tuple(in_words(table)), _figures(table))


def explore(laboratory: Laboratory, claims: dict[str, list[str]], *, held_out: bool = False) -> pd.DataFrame:
    """Judge claims in cells, by the seeds of each or by as many that come after them, or read how they were judged.

    Returns
    -------
    DataFrame
        One row per estimate behind a verdict: ``cell, hypothesis, measure, verdict`` and the columns of
        :func:`gmmcnn.experiments.statistics.estimates_table`.
    """
    parts = [pd.DataFrame(columns=[*QUESTION, "verdict"])]
    with progress("claims", sum(map(len, claims.values())), "claims") as advance:
        for cell, hypotheses in claims.items():
            own = Laboratory(with_cell(laboratory.settings, cell), laboratory.folder)
            if held_out:
                own = Laboratory(replace(own.settings, seed=own.seeds[-1] + 1), laboratory.folder)
            for hypothesis in hypotheses:
                path = laboratory.folder / "cells" / f"{_name(own)}-{hypothesis}.csv"
                if not path.exists():
                    table = pd.concat(
                        estimates_table(verdict).assign(measure=measure, verdict=verdict.label)
                        for measure, verdict in CLAIMS[hypothesis](own)
                    )
                    write_table(path, table)
                    add_digest(path)
                require_as_recorded(path)
                parts.append(pd.read_csv(path).assign(cell=cell, hypothesis=hypothesis))
                advance()
    return pd.concat(parts if len(parts) == 1 else parts[1:], ignore_index=True)


def _name(laboratory: Laboratory) -> str:
    """Name of everything that the verdicts on a cell depend on, the rule among it."""
    return name_of([RULE, laboratory.behind(laboratory.settings)])


def _judge_counts(laboratory: Laboratory) -> Iterator[tuple[str, Verdict]]:
    """H1 by every measure, as rising and as falling."""
    table = measures_over_training(laboratory)
    for column in table.columns.difference(laboratory.metrics(next(laboratory.networks())).columns, sort=False):
        yield f"more {column}", judge_over_training(table, column, column)
        yield f"less {column}", judge_over_training(table.assign(**{column: -table[column]}), column, column)


def _judge_gradients(laboratory: Laboratory) -> Iterator[tuple[str, Verdict]]:
    table = gradients.compare_outliers(laboratory)
    yield from ((measure, gradients.verdict_on(table, measure)) for measure in gradients.MEASURES)


def _judge_pruning(laboratory: Laboratory) -> Iterator[tuple[str, Verdict]]:
    table = pruning.effects_of_masks(laboratory)
    yield from ((rule, pruning.verdict_on(table, rule)) for rule in pruning.RULES)


CLAIMS: dict[str, Callable[[Laboratory], Iterator[tuple[str, Verdict]]]] = {
    "H1": _judge_counts,
    "H2": _judge_gradients,
    "H3": _judge_pruning,
}
"""Hypothesis → what judges it in a laboratory, by each of its measures."""


def measures_over_training(laboratory: Laboratory) -> pd.DataFrame:
    """Tabulate whatever might follow the gap.

    Returns
    -------
    DataFrame
        One row per network and round: the columns of :meth:`Laboratory.metrics`; the :func:`measures` on training
        images; what they exceed those on held-out images by; and those before the activation.
    """
    extract = replace(laboratory.settings.extract, tap="pre_activation")
    before = Laboratory(replace(laboratory.settings, extract=extract), laboratory.folder)

    def observe(network: Network, number: int) -> dict[str, float]:
        found = measures(laboratory.analysis(network, number))
        held_out = measures(laboratory.analysis(network, number, "held_out"))
        beyond = {f"{name}, beyond held-out images'": found[name] - held_out[name] for name in found}
        inner = measures(before.analysis(network, number))
        return found | beyond | {f"{name}, before the activation": inner[name] for name in inner}

    return laboratory.over_training(observe)


def measures(analysis: Analysis) -> dict[str, float]:
    """Counts, frequencies and scores of an analysis; means over live filters and probe batches where not said.

    Filters by each criterion and by all (and by :data:`THRESHOLDS`) in a batch; live filters; anomaly filters; number
    of components; logarithm of the CH index; evenness of the clusters (entropy of their shares over that of equal
    ones); share of samples that are outliers, and the number of filters that single one out.
    """
    screening, outliers = analysis.screening, analysis.outliers
    live = screening.batches[is_live(screening.batches["status"])]
    counted, n_fits = overfitting.count_by_criteria(analysis), analysis.fits.n_batches * analysis.fits.n_repeats
    other = {name: analysis.with_thresholds(**by).screening.flagged_per_batch for name, by in THRESHOLDS.items()}
    return {
        **counted,
        **other,
        "flagged share": counted["flagged"] * n_fits / max(len(live), 1),
        "live": len(live) / n_fits,
        "anomalous": float(screening.filters["anomalous"].sum()),
        "components": _mean_or_zero(live["n_components"]),
        "log CH": _mean_or_zero(np.log(live["calinski_harabasz"])),
        "evenness": _mean_or_zero(evenness(analysis)),
        "outliers": len(outliers) / (analysis.fits.n_batches * analysis.fits.n_samples),
        "filters an outlier": _mean_or_zero(outliers["n_filters"]),
    }


def evenness(analysis: Analysis) -> pd.Series:
    """Entropy of the clusters' shares over that of equal clusters, one number per clustering: 1 where all are equal."""
    values = []
    for layer in analysis.fits.layers.values():
        sizes = cluster_sizes(layer.labels, layer.weights.shape[-1])[layer.live]
        shares = sizes / sizes.sum(axis=1, keepdims=True)
        occupied = (sizes > 0).sum(axis=1)
        entropy = -(shares * np.log(np.where(shares > 0, shares, 1))).sum(axis=1)
        values.append(entropy[occupied > 1] / np.log(occupied[occupied > 1]))
    return pd.Series(np.concatenate(values))


def _mean_or_zero(values: pd.Series) -> float:
    """Mean of numbers; 0 without any: a count over training must not have holes."""
    return float(values.mean()) if len(values) else 0.0


def in_words(table: pd.DataFrame) -> Iterator[str]:
    """Say for each claim what was asked, what looked supported, and what the held-out seeds confirmed."""
    questions = table.drop_duplicates([*QUESTION, "stage"])
    for hypothesis, rows in questions.groupby("hypothesis"):
        asked = rows[rows["stage"] == "explored"]
        again = rows[rows["stage"] == "held out"]
        looked, held = (part[part["verdict"] == SUPPORTED] for part in (asked, again))
        yield (
            f"{hypothesis}: {len(asked)} questions in {asked['cell'].nunique()} cells; {len(looked)} looked supported; "
            f"{len(held)} of these {len(again)} held on further seeds. By chance alone, at most "
            f"{len(asked) * ALPHA:.2g} would look supported and {len(asked) * ALPHA**2:.2g} hold."
        )
        for row in held.itertuples():
            yield f"  {row.hypothesis} held: {row.measure} in {row.cell}"
    steadiest = steadiness(table).head(5)
    for row in steadiest.itertuples():
        yield (
            f"Given the epoch, {row.Index}: mean rank correlation with the gap {row.mean:+.2f} over {row.cells} cells, "
            f"of the same sign in {row.same_sign:.0%}."
        )


def steadiness(table: pd.DataFrame) -> pd.DataFrame:
    """How measures go with the gap given the epoch, over all explored cells: the steadiest first.

    Returns
    -------
    DataFrame
        By measure: ``mean`` partial correlation over cells, ``same_sign`` (share of cells with its sign), ``cells``.
    """
    rows = table[(table["stage"] == "explored") & (table["hypothesis"] == "H1") & (table["name"] == "given the epoch")]
    rising = rows[rows["measure"].str.startswith("more ")].dropna(subset="value")
    by_measure = rising.groupby("measure")["value"]
    found = pd.DataFrame(
        {
            "mean": by_measure.mean(),
            "same_sign": by_measure.agg(lambda values: float((np.sign(values) == np.sign(values.mean())).mean())),
            "cells": by_measure.size(),
        }
    )
    return found.sort_values("mean", key=np.abs, ascending=False)


def _figures(table: pd.DataFrame) -> dict[str, object]:
    shown = table[
        (table["hypothesis"] == "H1") & table["measure"].str.startswith("more ") & (table["stage"] == "explored")
    ]
    if shown.empty:
        return {}
    figure = px.strip(
        shown, x="value", y="measure", color="verdict", facet_col="name", hover_data=["cell", "low", "high"],
        title="What might follow the gap: a point a cell", height=200 + 22 * shown["measure"].nunique(),
    )  # fmt: skip
    figure.update_xaxes(matches=None)
    return {"measures": figure}
