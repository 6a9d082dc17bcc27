"""Time and memory of real cells at their smallest; exponents of tables whose truth is known."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gmmcnn import config
from gmmcnn.experiments import scalability
from gmmcnn.experiments.laboratory import Laboratory
from gmmcnn.experiments.scalability import AXES, GRIDS, STAGES, by_axis, exponents, measure_cells, slope

MIB = 2**20


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory) -> Laboratory:
    """Two starts instead of ten: the cells are about the machinery."""
    settings = config.Settings(
        task="experiment",
        data=config.Data(name="digits"),
        gmm=config.Gmm(k_max=4, n_init=2, repeats=1),
        engine=config.Engine(threads=1),
        experiment=config.Experiment(name="scalability", size="smoke"),
    )
    return Laboratory(settings, Path(tmp_path_factory.mktemp("scalability")))


@pytest.fixture(scope="module")
def outcome(laboratory):
    return scalability.run(laboratory)


def test_every_axis_has_its_cells_in_both_stages(outcome):
    table = outcome.table
    for axis, (size, _) in AXES.items():
        rows = table[table["axis"] == axis]
        assert sorted(rows["size"]) == sorted(2 * [getattr(cell, size) for cell in GRIDS["smoke"].along(axis)])
        assert (rows["size"] == rows[size]).all()
        assert (rows[[other for other in AXES if other != axis]].nunique() == 1).all()
    assert set(table["stage"]) == set(STAGES)


def test_costs_are_of_real_work(outcome):
    table = outcome.table
    fits, extractions = (table[table["stage"] == stage] for stage in ("fit", "extract"))
    assert (table["seconds"] > 0).all()
    assert (table["peak_bytes"] >= MIB).all()
    assert fits["live_share"].between(0.5, 1).all()  # random filters on real images: most of them see something
    assert (fits["iterations"] >= 2).all()
    assert extractions["forward_seconds"].median() < extractions["seconds"].median()  # each is timed on its own


def test_what_was_measured_is_not_measured_again(outcome, laboratory, monkeypatch):
    (folder,) = (laboratory.folder / "scalability").iterdir()
    grid = replace(GRIDS["smoke"], repeats=1)
    assert len(list(folder.iterdir())) == len(grid.cells) == 6
    (folder / "3-2-6-20-1-0.json").write_text(
        json.dumps({stage: {"seconds": 42.0, "peak_bytes": 7 * MIB} for stage in STAGES})
    )
    monkeypatch.setattr(scalability, "measure_cell", lambda *args: pytest.fail("measured again"))
    again = measure_cells(laboratory, grid)
    assert (again.query("width == 3 and depth == 2 and side == 6 and samples == 20")["seconds"] == 42).any()


def test_other_settings_are_other_cells(laboratory, monkeypatch):
    other = replace(laboratory.settings, gmm=replace(laboratory.settings.gmm, n_init=1))
    monkeypatch.setattr(scalability, "measure_cell", lambda *args: {"fit": {"seconds": 1.0, "peak_bytes": MIB}})
    assert set(measure_cells(Laboratory(other, laboratory.folder), GRIDS["smoke"])["seconds"]) == {1}


def table_of(exponent: float, memory: float) -> pd.DataFrame:
    """Cells whose costs are powers of the number of filters and of nothing else, the second repeat disturbed."""
    grid = GRIDS["quick"]
    rows = [
        {**vars(cell), "filters": cell.filters, "pixels": cell.pixels, "repeat": repeat, "stage": stage,
         "seconds": 1e-3 * cell.filters**exponent * (1 + 2 * repeat), "peak_bytes": 5 * MIB * cell.width**memory}
        for cell in grid.cells for stage in STAGES for repeat in range(2)
    ]  # fmt: skip
    return by_axis(pd.DataFrame(rows), grid)


@pytest.mark.parametrize(("exponent", "memory"), [(1.0, 0.5), (2.0, 0.0)])
def test_exponents_are_those_of_the_table(exponent, memory):
    found = {(growth.axis, growth.stage, growth.cost): growth for growth in exponents(table_of(exponent, memory))}
    assert len(found) == len(AXES) * len(STAGES) * 2
    expected = {("width", "seconds"): exponent, ("depth", "seconds"): exponent, ("width", "peak_bytes"): memory}
    for (axis, _, cost), growth in found.items():
        truth = pytest.approx(expected.get((axis, cost), 0.0), abs=1e-9)
        assert [growth.exponent, growth.low, growth.high, growth.last] == [truth] * 4  # a power law and nothing else
    growth = found["width", "fit", "seconds"]
    assert (growth.smallest, growth.largest) == (128, 4160)
    undisturbed = pytest.approx((1e-3 * 128**exponent, 1e-3 * 4160**exponent))
    assert (growth.cost_at_smallest, growth.cost_at_largest) == undisturbed
    assert f"fit: time grows as filters^{exponent:.2f}" in str(growth)


def test_the_interval_tells_how_well_a_power_law_describes():
    sizes = np.array([1.0, 2, 4, 8, 16])
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        _, low, high, _ = slope(sizes, sizes**0.7 * np.exp(0.2 * rng.normal(size=5)))
        held += low <= 0.7 <= high
    assert 0.92 < held / 400 < 0.98
    exponent, low, high, last = slope(sizes, 100 + sizes**2)  # a fixed cost, then quadratic
    assert low < exponent < high
    assert exponent < last < 2
    assert np.isnan(slope(sizes[:2], sizes[:2])[1:3]).all()


def test_quick_and_full_have_a_network_of_more_than_4000_filters():
    for size in ("quick", "full"):
        assert max(cell.filters for cell in GRIDS[size].along("width")) > 4000


def test_everything_is_written(outcome, tmp_path):
    outcome.write(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"table.csv", "exponents.csv", "verdict.txt", "time.html", "peak_memory.html"}
    said = (tmp_path / "verdict.txt").read_text()
    assert "fit: time grows as filters^" in said
    assert "Largest network, 24 filters: extract" in said
    assert len(pd.read_csv(tmp_path / "exponents.csv")) == len(AXES) * len(STAGES) * 2
