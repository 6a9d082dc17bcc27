"""Which conclusions move when the settings do: each setting varied on its own around those in force.

The networks are those of the experiment on overfitting, and every variant is judged as the claim H1 is there.
Thresholds and averages are varied on the stored fits; number of components, samples, dimensions, tap and seed of the
starts need fits of their own, of the same networks. Small clusters are an affair of three settings at once, so
λ·K_max/N is varied as a whole too.

At last thresholds are chosen by data, and judged on seeds that had no part in that (:mod:`.thresholds`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from math import inf
from typing import Any

import pandas as pd
import plotly.express as px

from gmmcnn import config
from gmmcnn.errors import ConfigurationError
from gmmcnn.experiments import thresholds
from gmmcnn.experiments.following import judge_over_training
from gmmcnn.experiments.laboratory import Condition, Laboratory, Network
from gmmcnn.experiments.outcome import Outcome
from gmmcnn.experiments.statistics import WORDS, Verdict
from gmmcnn.experiments.thresholds import Choice, choose, count_by_thresholds, point, thresholds_over_training
from gmmcnn.featuremaps import find_taps
from gmmcnn.featuremaps.capture import TAPS
from gmmcnn.filters.fits import Fits
from gmmcnn.filters.screening import saturation
from gmmcnn.names import did_you_mean

VALUES: dict[str, tuple] = {
    "screen.small_cluster": (2, 3, 5, 10, 20),
    "screen.min_small_clusters": (1, 2, 3),
    "screen.ch_ratio": (0.0, 0.5, 0.8, 1.0, 1.25),
    "screen.activation_ratio": (0.0, 0.25, 0.5, 0.75, 1.0),
    "screen.min_frequency": (0.2, 0.5, 0.8),
    "screen.scope": ("layer", "network"),
    "screen.average": ("median", "mean"),
    "gmm.k_max": (5, 10, 15),
    "probe.samples": (100, 200, 400),
    "pca.dims": (1, 2, 3, 4),
    "extract.tap": TAPS,
    "gmm.random_state": (0, 1, 2),
}
"""Setting → values; the one in force is among the variants in any case."""
SATURATION = "saturation"
IN_FORCE = "in force"
ESTIMATES = {
    "effect": "Spearman with the gap",
    "given_epoch": "given the epoch",
    "beyond_control": "rise beyond control",
    "given_fit": "given the epoch and the training loss",
}
"""What a verdict rests on, in its order → in words."""
FACTORS = (*(key.partition(".")[2] for key in VALUES), SATURATION)
"""What can be varied: settings by their names without the group, and λ·K_max/N."""


@dataclass(frozen=True)
class Variant:
    """One way to set the method up."""

    factor: str
    value: Any
    settings: config.Settings
    in_force: bool

    @property
    def name(self) -> str:
        """Column of its count."""
        return self.factor if self.value is None else f"{self.factor}={self.value}"

    @property
    def by_frequency(self) -> bool:
        """Whether its count is that of the anomaly filters."""
        return self.factor == "min_frequency"

    @property
    def ratio(self) -> float:
        """λ·K_max/N."""
        n_samples, k_max = self.settings.probe.samples, self.settings.gmm.k_max
        return saturation(n_samples, k_max, self.settings.screen.small_cluster_for(n_samples, k_max)).ratio

    def count(self, fits: Fits) -> float:
        """Filters flagged in a probe batch; where the frequency is varied, anomaly filters."""
        screen = self.settings.screen
        return count_by_thresholds(fits, screen, point(screen, by_frequency=self.by_frequency)).item()


def run(laboratory: Laboratory) -> Outcome:
    """Vary, judge, and choose."""
    chosen = list(variants(laboratory))
    table = variants_over_training(laboratory, chosen)
    verdicts = {variant.name: judge_over_training(table, variant.name, variant.name) for variant in chosen}
    summary = summarise(table, chosen, verdicts)
    in_force = judge_over_training(table, IN_FORCE, "H1 by the settings in force")
    choice = choose_thresholds(laboratory)
    return Outcome(
        table,
        (in_force, choice.verdict),
        (*moves(summary, in_force), str(choice)),
        _figures(summary, choice),
        {"variants": summary, "thresholds": choice.scores.reset_index()},
    )


def variants(laboratory: Laboratory) -> Iterator[Variant]:
    """One setting at a time away from those in force, then λ, K_max and N together.

    Raises
    ------
    ConfigurationError
        ``experiment.factors`` names something that is not varied here.
    """
    settings = laboratory.settings
    wanted = settings.experiment.factors or list(FACTORS)
    for factor in wanted:
        if factor not in FACTORS:
            raise ConfigurationError(f"experiment.factors: {factor}: not varied{did_you_mean(factor, FACTORS)}")
    for key in VALUES:
        if key.partition(".")[2] in wanted:
            yield from _varied(laboratory, key)
    if SATURATION in wanted:
        others = [variant for key in ("gmm.k_max", "probe.samples") for variant in _varied(laboratory, key)]
        fitted = {(v.settings.gmm.k_max, v.settings.probe.samples): v.settings for v in others}
        for (k_max, samples), base in fitted.items():
            for size in VALUES["screen.small_cluster"]:
                screen = replace(base.screen, small_cluster=size)
                value = f"{size}·{k_max}/{samples}"
                yield Variant(SATURATION, value, replace(base, screen=screen), replace(base, screen=screen) == settings)


def _varied(laboratory: Laboratory, key: str) -> Iterator[Variant]:
    """Variants of one setting."""
    settings, (group, _, name) = laboratory.settings, key.partition(".")
    in_force = getattr(getattr(settings, group), name)
    for value in _values(laboratory, key, in_force):
        varied = replace(settings, **{group: replace(getattr(settings, group), **{name: value})})
        yield Variant(name, value, varied, value == in_force)


def _values(laboratory: Laboratory, key: str, in_force: Any) -> list:
    """Values of a setting that this network and its data allow, in ascending order where there is one."""
    if key == "extract.tap":
        return distinct_taps(laboratory)
    values = list(dict.fromkeys((*VALUES[key], in_force)))
    if isinstance(in_force, str):
        return values
    least = laboratory.settings.gmm.k_min if key == "gmm.k_max" else 0
    most = laboratory.size.train_samples if key == "probe.samples" else inf
    return sorted(value for value in values if least <= value <= most)


def distinct_taps(laboratory: Laboratory) -> list[str]:
    """Taps that differ in what they take of this network, the one in force among them."""
    network = next(laboratory.networks())
    model, example = laboratory.model(network, 1), laboratory.probe(network).images[:1]
    in_force = laboratory.settings.extract.tap
    kept: dict[tuple, str] = {}
    for tap in (in_force, *TAPS):
        kept.setdefault(find_taps(model, example, tap=tap).analysed, tap)
    return list(kept.values())


def variants_over_training(laboratory: Laboratory, chosen: list[Variant]) -> pd.DataFrame:
    """Tabulate counts.

    Returns
    -------
    DataFrame
        One row per network and round: the columns of :meth:`Laboratory.metrics`, the count ``in force``, and one for
        each variant under its name.
    """
    columns = [Variant(IN_FORCE, None, laboratory.settings, in_force=True), *chosen]
    by_fits: dict[str, list[Variant]] = {}
    for variant in columns:
        by_fits.setdefault(repr(replace(variant.settings, screen=config.Screen())), []).append(variant)
    beside = [(laboratory.beside(alike[0].settings), alike) for alike in by_fits.values()]

    def observe(network: Network, number: int) -> dict[str, float]:
        counted: dict[str, float] = {}
        for other, alike in beside:
            fits = other.analysis(network, number).fits
            counted |= {variant.name: variant.count(fits) for variant in alike}
        return {variant.name: counted[variant.name] for variant in columns}

    return laboratory.over_training(observe)


def summarise(table: pd.DataFrame, chosen: list[Variant], verdicts: dict[str, Verdict]) -> pd.DataFrame:
    """One row per variant.

    Returns
    -------
    DataFrame
        ``factor, value, in_force, again`` (whether it is the count in force, or that of an earlier row), ``ratio``
        (λ·K_max/N), mean ``count`` of the overfitting networks, ``verdict``, and for each of the :data:`ESTIMATES`
        the mean over seeds with ``_low`` and ``_high``.
    """
    overfitting = table[table["condition"] == Condition.OVERFITTING]
    seen = {repr((variant.settings, False)) for variant in chosen if variant.in_force}
    rows = []
    for variant in chosen:
        verdict, count = verdicts[variant.name], repr((variant.settings, variant.by_frequency))
        row = {
            "factor": variant.factor, "value": variant.value, "in_force": variant.in_force, "again": count in seen,
            "ratio": variant.ratio, "count": overfitting[variant.name].mean(), "verdict": verdict.label,
        }  # fmt: skip
        seen.add(count)
        estimates = (*verdict.effects, *verdict.checks)
        for name, found in zip(ESTIMATES, estimates, strict=True):
            row |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
        rows.append(row)
    return pd.DataFrame(rows)


def moves(summary: pd.DataFrame, in_force: Verdict) -> Iterator[str]:
    """Say which settings change the verdict, and between which values."""
    moved = [str(factor) for factor, rows in summary.groupby("factor", sort=False) if rows["verdict"].nunique() > 1]
    steady = [str(factor) for factor in summary["factor"].unique() if factor not in moved]
    distinct = summary[~summary["again"]]
    counted = ", ".join(f"{(distinct['verdict'] == label).sum()} {label}" for label in WORDS)
    yield (
        f"{len(distinct)} variants around the settings in force ({in_force.label}): {counted}. They are variants "
        "of one count on the same networks: neither independent, nor corrected for their number."
    )
    yield (
        f"The verdict changes with {', '.join(moved) or 'none of the settings'}; "
        f"it stays with {', '.join(steady) or 'none'}."
    )
    for factor, rows in summary.groupby("factor", sort=False):
        ordered = rows.sort_values("ratio", kind="stable") if factor == SATURATION else rows
        parts = [
            f"{label} at {', '.join(_value(row) for row in run)}"
            for label, run in groupby(ordered.itertuples(), key=_label)
        ]
        yield f"{factor}: {'; '.join(parts)}."


def _label(row: Any) -> str:
    return f"{row.verdict}, the count falls," if row.effect_high < 0 else row.verdict


def _value(row: Any) -> str:
    ratio = f" = {row.ratio:.2f}" if row.factor == SATURATION else ""
    return f"{row.value}{ratio}{' (in force)' if row.in_force else ''}"


def choose_thresholds(laboratory: Laboratory) -> Choice:
    """Choose on the seeds of the experiment, judge on as many that come after them."""
    settings = laboratory.settings
    others = replace(settings, seed=settings.seed + laboratory.size.seeds)
    held_out = thresholds_over_training(Laboratory(others, laboratory.folder))
    return choose(thresholds_over_training(laboratory), held_out, list(thresholds.points()))


def _figures(summary: pd.DataFrame, choice: Choice) -> dict[str, object]:
    named = summary.assign(variant=summary["factor"] + " = " + summary["value"].astype(str))
    long = pd.concat(
        named[["variant", "verdict", "count", "ratio"]].assign(
            measure=words, mean=named[name], above=named[f"{name}_high"] - named[name],
            below=named[name] - named[f"{name}_low"],
        )
        for name, words in ESTIMATES.items()
    )  # fmt: skip
    dots = px.scatter(
        long, x="mean", y="variant", color="verdict", facet_col="measure", error_x="above", error_x_minus="below",
        hover_data=["count", "ratio"], category_orders={"variant": list(named["variant"])},
        labels={"mean": "", "variant": ""}, title="H1 by every variant, means and 95 % intervals over seeds",
        height=200 + 18 * len(named),
    )  # fmt: skip
    dots.update_xaxes(matches=None)
    figures: dict[str, object] = {"variants": dots}
    joint = named[named["factor"] == SATURATION]
    if len(joint):
        figures["saturation"] = px.scatter(
            joint, x="ratio", y="effect", color="verdict", size="count", hover_data=["value"], log_x=True,
            labels={"ratio": "λ·K_max/N", "effect": "Spearman with the gap"}, title="Effect against λ·K_max/N",
        )  # fmt: skip
    figures["thresholds"] = px.scatter(
        choice.scores.reset_index(), x="score", y="held_out", hover_name="thresholds",
        labels={"score": "score on the seeds chosen on", "held_out": "score on held-out seeds"},
        title="Thresholds, a point each",
    )  # fmt: skip
    return figures
