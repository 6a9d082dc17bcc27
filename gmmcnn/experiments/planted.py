"""Whether the machinery works: outliers planted in the probe set, found or not.

Some probe images are replaced by Gaussian noise, more of them or fewer, stronger or weaker: far beyond the values that
a pixel can have, and once clipped to them, as an image that could be real. *Power* is the share of
checkpoints in which every planted image is reported as an outlier sample; *false alarms* are checkpoints in which
anything is reported though nothing was planted. This says that the check finds what is there; it says nothing about
what outliers mean.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import plotly.express as px

from gmmcnn.analysis import Analysis
from gmmcnn.experiments.laboratory import Laboratory
from gmmcnn.experiments.outcome import Outcome
from gmmcnn.experiments.statistics import over_seeds

NUMBER, STRENGTH = 4, 5.0
_SIZES = {(0, STRENGTH)} | {(n, STRENGTH) for n in (1, 2, 4, 8)} | {(NUMBER, s) for s in (0.5, 1.0, 2.0, 5.0)}
GRID = [*((False, *size) for size in sorted(_SIZES)), (True, NUMBER, STRENGTH)]
"""Whether noise is clipped to the data's values, planted images, and their strength (standard deviations of the probe
images' pixels): one varied at a time."""
CELL = ["clipped", "planted", "strength"]


def run(laboratory: Laboratory) -> Outcome:
    """Plant, look, and draw the power curve."""
    table = detections(laboratory)
    return Outcome(table, (), (*power_in_words(table), false_alarms_in_words(table)), _figures(table))


def detections(laboratory: Laboratory) -> pd.DataFrame:
    """Tabulate what was found.

    Returns
    -------
    DataFrame
        One row per network, round (the later half of them, where networks are trained) and cell of the :data:`GRID`:
        ``seed``, ``condition``, ``round``, ``clipped``, ``planted``, ``strength``, ``found`` (planted images reported),
        ``others`` (reported, but not planted).
    """
    probe = laboratory.settings.probe
    planters = {
        (clipped, number, strength): laboratory.beside(
            replace(
                laboratory.settings,
                probe=replace(probe, plant=number, plant_strength=strength, plant_clipped=clipped),
            )
        )
        for clipped, number, strength in GRID
    }
    rows = []
    for network, after in laboratory.checkpoints(laboratory.rounds[len(laboratory.rounds) // 2 :]):
        place = {"seed": network.seed, "condition": network.condition, "round": after}
        for cell, planter in planters.items():
            rows.append(place | dict(zip(CELL, cell, strict=True)) | found(planter.analysis(network, after)))
    return pd.DataFrame(rows).sort_values(CELL, kind="stable", ignore_index=True)


def found(analysis: Analysis) -> dict[str, int]:
    """Number of outlier samples that were planted, and of others."""
    planted = analysis.outliers["planted"].astype(bool)
    return {"found": int(planted.sum()), "others": int((~planted).sum())}


def power_in_words(table: pd.DataFrame) -> list[str]:
    """One sentence per cell of the grid that plants something."""
    planted = table[table["planted"] > 0]
    sentences = []
    for (clipped, number, strength), rows in planted.groupby(CELL):
        power = over_seeds("power", _shares(rows, rows["found"] == rows["planted"]), possible=(0, 1))
        noise = f"strength {strength:g}" + (", clipped to valid pixels" if clipped else "")
        sentences.append(
            f"{number} planted, {noise}: power {power.value:.2f} over {len(rows)} checkpoints of "
            f"{power.n} seeds{_interval(power.low, power.high)}; {rows['found'].sum() / rows['planted'].sum():.0%} of "
            f"the planted images found, {rows['others'].mean():.1f} other samples reported."
        )
    return sentences


def false_alarms_in_words(table: pd.DataFrame) -> str:
    """One sentence on the checkpoints without a planted image."""
    rows = table[table["planted"] == 0]
    alarms = over_seeds("false alarms", _shares(rows, rows["others"] > 0), possible=(0, 1))
    return (
        f"Nothing planted: false alarm in {alarms.value:.0%} of {len(rows)} checkpoints of {alarms.n} seeds"
        f"{_interval(alarms.low, alarms.high)}."
    )


def _shares(rows: pd.DataFrame, held: pd.Series) -> pd.Series:
    """Share of a seed's checkpoints in which something held: those of one training are not independent."""
    return held.groupby(rows["seed"]).mean()


def _interval(low: float, high: float) -> str:
    return "" if np.isnan(low) else f", 95 % interval over seeds {low:.2f} to {high:.2f}"


def _figures(table: pd.DataFrame) -> dict[str, object]:
    planted = table[(table["planted"] > 0) & ~table["clipped"]].assign(
        power=lambda rows: rows["found"] == rows["planted"]
    )
    curve = planted.groupby(["condition", "planted", "strength"])["power"].mean().reset_index()
    return {
        "power_by_number": px.line(
            curve[curve["strength"] == STRENGTH], x="planted", y="power", color="condition", markers=True,
            range_y=[0, 1.05], title=f"Power against the number of planted images, strength {STRENGTH:g}",
        ),
        "power_by_strength": px.line(
            curve[curve["planted"] == NUMBER], x="strength", y="power", color="condition", markers=True,
            range_y=[0, 1.05], title=f"Power against the strength of {NUMBER} planted images",
        ),
    }  # fmt: skip
