"""How time and memory grow with filters, samples, batches, map size and depth, one varied at a time.

A cell is a plain network with weights as they are drawn, and a probe set of real images. The table says how many
iterations EM needed on its maps (``iterations``): a trained network's may need more or fewer.

Extraction and fitting are measured apart (:mod:`gmmcnn.experiments.costs`). All cells are measured once, then all once
more, so that a drift of the machine's speed meets every cell alike.

An exponent is the slope of log cost on log size: cost grows as size^exponent. It is taken from the shortest time of
the repeats, since other work on the machine can only add to it, and from their median of memory. Its interval tells how
well a power law describes the sizes. Fixed costs lower it where cells are small, so the exponent between the two
largest sizes is given beside it. Needs a system that forks (Linux, macOS).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.express as px
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from gmmcnn import config, data
from gmmcnn.experiments.costs import MEMORY_FLOOR_BYTES, Cell, Isolated, measure_cell
from gmmcnn.experiments.intervals import CONFIDENCE
from gmmcnn.experiments.laboratory import Laboratory
from gmmcnn.experiments.outcome import Outcome
from gmmcnn.files import name_of, read_record, write_record
from gmmcnn.progress import progress


@dataclass(frozen=True)
class Grid:
    """Cells to measure: one in the middle, and along every axis those that differ from it in one respect."""

    base: Cell
    width: tuple[int, ...]
    depth: tuple[int, ...]
    side: tuple[int, ...]
    samples: tuple[int, ...]
    batches: tuple[int, ...]
    repeats: int

    def along(self, axis: str) -> list[Cell]:
        """Cells of an axis, ascending, the one in the middle among them."""
        values = {*getattr(self, axis), getattr(self.base, axis)}
        return [replace(self.base, **{axis: value}) for value in sorted(values)]

    @property
    def cells(self) -> list[Cell]:
        """Every cell once, the one in the middle first."""
        return list(dict.fromkeys([self.base, *(cell for axis in AXES for cell in self.along(axis))]))


AXES = {
    "width": ("filters", "filters"),
    "samples": ("samples", "samples a batch"),
    "batches": ("batches", "batches"),
    "side": ("pixels", "pixels a map"),
    "depth": ("depth", "layers of the same width"),
}
"""What is varied → the size it is plotted over, and its name. With the depth the number of filters grows too."""

STAGES = ("extract", "fit")
COSTS = {"seconds": "min", "peak_bytes": "median"}
"""Cost → what is taken of its repeats."""

GRIDS = {
    "smoke": Grid(
        Cell(width=3, depth=2, side=6, samples=20, batches=1),
        width=(12,), depth=(8,), side=(24,), samples=(80,), batches=(4,), repeats=1,
    ),
    "quick": Grid(
        Cell(width=16, depth=8, side=8, samples=200, batches=1),
        width=(48, 160, 520), depth=(4, 16, 32), side=(16, 24, 32), samples=(400, 800, 1600), batches=(2, 4, 8),
        repeats=3,
    ),
    "full": Grid(
        Cell(width=64, depth=8, side=14, samples=200, batches=4),
        width=(8, 16, 32, 128, 256, 520, 1040), depth=(1, 2, 4, 16, 32, 64), side=(4, 7, 28, 56),
        samples=(50, 100, 400, 800, 1600), batches=(1, 2, 8, 16), repeats=5,
    ),
}  # fmt: skip
"""The widest network of ``quick`` has 4160 filters, that of ``full`` 8320."""


@dataclass(frozen=True)
class Growth:
    """How a cost grows along an axis.

    Attributes
    ----------
    axis, stage, cost : str
        Which size is varied (see :data:`AXES`), which of the :data:`STAGES`, ``seconds`` or ``peak_bytes``.
    exponent, low, high : float
        Slope of log cost on log size, and its 95 % interval; NaN for the interval of two sizes.
    last : float
        Exponent between the two largest sizes.
    smallest, largest : float
        Ends of the axis.
    cost_at_smallest, cost_at_largest : float
        In the unit that ``cost`` names.
    """

    axis: str
    stage: str
    cost: str
    exponent: float
    low: float
    high: float
    last: float
    smallest: float
    largest: float
    cost_at_smallest: float
    cost_at_largest: float

    def __str__(self) -> str:
        size, name = AXES[self.axis]
        interval = "" if np.isnan(self.low) else f" ({self.low:.2f} to {self.high:.2f})"
        what = {"seconds": "time", "peak_bytes": "memory"}[self.cost]
        first, last = (in_words(self.cost, value) for value in (self.cost_at_smallest, self.cost_at_largest))
        return (
            f"{self.stage}: {what} grows as {size}^{self.exponent:.2f}{interval}, at the largest two as "
            f"^{self.last:.2f}: {first} for {self.smallest:g}, {last} for {self.largest:g} {name}."
        )


def run(laboratory: Laboratory) -> Outcome:
    """Measure every cell, fit the exponents, and say them."""
    grid = GRIDS[laboratory.settings.experiment.size]
    table = by_axis(measure_cells(laboratory, grid), grid)
    growths = exponents(table)
    largest = table.loc[table["filters"].idxmax()]
    remarks = [*map(str, growths), _forward_in_words(table), _largest_in_words(table, int(largest["filters"]))]
    return Outcome(table, (), tuple(remarks), _figures(table), {"exponents": exponents_table(growths)})


def measure_cells(laboratory: Laboratory, grid: Grid) -> pd.DataFrame:
    """Measure the cells of a grid; what an earlier call measured is read.

    Returns
    -------
    DataFrame
        One row per cell, ``repeat`` and ``stage``, with what :func:`~gmmcnn.experiments.costs.measure_cell` says.
    """
    folder = laboratory.folder / "scalability" / _name(laboratory.settings)
    folder.mkdir(parents=True, exist_ok=True)
    images = _images(laboratory.settings, max(cell.images for cell in grid.cells))
    work = [(repeat, cell) for repeat in range(grid.repeats) for cell in grid.cells]
    rows = []
    with Isolated() as isolated, progress("cells", len(work), "cells") as advance:
        for repeat, cell in work:
            path = folder / f"{'-'.join(str(value) for value in asdict(cell).values())}-{repeat}.json"
            if not path.exists():
                measured = measure_cell(isolated, cell, laboratory.settings, images)
                write_record(path, measured)
            sizes = asdict(cell) | {"filters": cell.filters, "pixels": cell.pixels}
            for stage, costs in _read(path).items():
                rows.append(sizes | {"repeat": repeat, "stage": stage} | costs)
            advance()
    return pd.DataFrame(rows)


def _read(path: Path) -> dict[str, Any]:
    """Costs of a cell that was measured before, by stage."""
    return read_record(path, {}, remedy="delete it: task=experiment measures it again") or {}


def by_axis(table: pd.DataFrame, grid: Grid) -> pd.DataFrame:
    """Rows of each axis, with ``axis`` and ``size`` in front; the cell in the middle belongs to all of them."""
    parts = []
    for axis, (size, _) in AXES.items():
        same = np.logical_and.reduce([table[other] == getattr(grid.base, other) for other in AXES if other != axis])
        rows = table[same & table[axis].isin([getattr(cell, axis) for cell in grid.along(axis)])]
        parts.append(rows.assign(axis=axis, size=rows[size]).sort_values(["size", "repeat", "stage"]))
    joined = pd.concat(parts, ignore_index=True)
    return joined[["axis", "size", *table.columns]]


def exponents(table: pd.DataFrame) -> list[Growth]:
    """Growth of time and memory of each stage along each axis, of a table by :func:`by_axis`."""
    found = []
    for axis in AXES:
        for stage in STAGES:
            cells = over_repeats(table.query("axis == @axis and stage == @stage"), ["size"])
            for cost in COSTS:
                sizes, costs = cells["size"].astype(float).tolist(), cells[cost].astype(float).tolist()
                ends = (sizes[0], sizes[-1], costs[0], costs[-1])
                found.append(Growth(axis, stage, cost, *slope(sizes, costs), *ends))
    return found


def exponents_table(growths: Sequence[Growth]) -> pd.DataFrame:
    """One row a growth; ``size`` names what ``smallest`` and ``largest`` count."""
    return pd.DataFrame([{"size": AXES[growth.axis][1]} | asdict(growth) for growth in growths])


def over_repeats(table: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """One row for each combination of ``keys``: the shortest time of the repeats, their median of memory."""
    return table.groupby(keys).agg(COSTS).reset_index()


def slope(sizes: ArrayLike, costs: ArrayLike) -> tuple[float, float, float, float]:
    """Exponent of a power law, the limits of its 95 % interval (Student), and the exponent between the last two sizes.

    Parameters
    ----------
    sizes : (S,) float
        Ascending, at least two.
    costs : (S,) float
        Above 0.
    """
    x, y = np.log(np.asarray(sizes, float)), np.log(np.asarray(costs, float))
    last = float((y[-1] - y[-2]) / (x[-1] - x[-2]))
    if len(x) == 2:
        return last, np.nan, np.nan, last
    line = stats.linregress(x, y)
    error = np.nan_to_num(line.stderr)  # undefined where all costs are equal, and a power law fits exactly
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(x) - 2) * error)
    return float(line.slope), float(line.slope) - half, float(line.slope) + half, last


def _images(settings: config.Settings, n_images: int) -> NDArray[np.float32]:
    """(n_images, C, H, W) training images, drawn by seed."""
    chosen = replace(settings.data, train_samples=n_images, label_noise=0.0)
    return data.load(chosen, settings.seed).train.images.numpy()


def _name(settings: config.Settings) -> str:
    """Name of everything but the cell that costs depend on."""
    groups: tuple[Any, ...] = (settings.data, settings.extract, settings.pca, settings.gmm, settings.engine)
    return name_of([settings.seed, *map(asdict, groups)], 10)


def in_words(cost: str, value: float) -> str:
    """A cost with its unit, as ``3.2 s`` or ``140 MiB``."""
    if cost == "seconds":
        return f"{value:.3g} s"
    return "no more than 1 MiB" if value <= MEMORY_FLOOR_BYTES else f"{value / 2**20:.3g} MiB"


def _forward_in_words(table: pd.DataFrame) -> str:
    rows = table[(table["stage"] == "extract") & (table["axis"] == "width")].groupby("size")
    parts = [f"{rows.min()['forward_seconds'][size]:.2g} s for {size}" for size in rows.groups]
    return f"extract: of its time the network's own forward pass alone takes {', '.join(parts)} filters."


def _largest_in_words(table: pd.DataFrame, filters: int) -> str:
    rows = over_repeats(table[table["filters"] == filters], ["stage"])
    parts = [
        f"{row.stage} " + " and ".join(in_words(cost, getattr(row, cost)) for cost in COSTS)
        for row in rows.itertuples()
    ]
    return f"Largest network, {filters} filters: {', '.join(parts)}."


def _figures(table: pd.DataFrame) -> dict[str, object]:
    cells = over_repeats(table, ["axis", "stage", "size"])
    figures = {}
    for cost, title in (("seconds", "Time"), ("peak_bytes", "Peak memory")):
        figure = px.line(
            cells, x="size", y=cost, color="stage", facet_col="axis", log_x=True, log_y=True, markers=True,
            title=f"{title} against size, one varied at a time",
        )  # fmt: skip
        figure.update_xaxes(matches=None)
        for note in figure.layout.annotations:
            note.text = AXES[note.text.removeprefix("axis=")][1]
        figures[title.lower().replace(" ", "_")] = figure
    return figures
