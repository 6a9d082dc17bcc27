"""Power and false alarms, counted as they are defined."""

from dataclasses import replace

import pandas as pd
import pytest

from gmmcnn.experiments import planted
from gmmcnn.experiments.laboratory import Laboratory, Network
from gmmcnn.experiments.planted import GRID, false_alarms_in_words, power_in_words


@pytest.fixture(scope="module")
def outcome(laboratory):
    return planted.run(laboratory)


def test_there_is_a_row_for_every_cell_of_the_grid_and_trained_checkpoint(outcome):
    assert len(outcome.table) == len(GRID) * 6 * 2
    assert set(outcome.table["round"]) == {3, 4}
    assert (outcome.table["found"] <= outcome.table["planted"]).all()
    assert outcome.table[outcome.table["clipped"]][["planted", "strength"]].drop_duplicates().values.tolist() == [
        [4, 5]
    ]
    assert sum("clipped to valid pixels" in remark for remark in outcome.remarks) == 1


def test_what_was_planted_was_in_the_probe_set(laboratory):
    planter = Laboratory(
        replace(laboratory.settings, probe=replace(laboratory.settings.probe, plant=2)), laboratory.folder
    )
    analysis = planter.analysis(Network(0, "control"), 4)
    assert (analysis.samples["planted"] == "noise").sum() == (analysis.samples["planted"] != "").sum() == 2
    assert (laboratory.analysis(Network(0, "control"), 4).samples["planted"] == "").all()


def table_of(n_planted: int, found: list[int], others: list[int]) -> pd.DataFrame:
    rows = {"clipped": False, "planted": n_planted, "strength": 5.0, "found": found, "others": others}
    return pd.DataFrame(rows).assign(seed=[0, 0, 1, 1, 2, 2], condition="overfitting")


def test_power_is_the_share_of_checkpoints_that_find_all():
    (sentence,) = power_in_words(table_of(4, [4, 4, 4, 3, 4, 0], [0, 0, 1, 0, 0, 2]))
    assert "power 0.67 over 6 checkpoints of 3 seeds" in sentence
    assert "79% of the planted images found, 0.5 other samples" in sentence


def test_a_false_alarm_is_anything_reported_though_nothing_was_planted():
    assert "in 33% of 6 checkpoints" in false_alarms_in_words(table_of(0, [0] * 6, [0, 0, 3, 0, 0, 1]))
    assert "in 0% of 6 checkpoints" in false_alarms_in_words(table_of(0, [0] * 6, [0] * 6))


def test_everything_is_written(outcome, tmp_path):
    outcome.write(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"table.csv", "verdict.txt", "power_by_number.html", "power_by_strength.html"}
    assert "Nothing planted: false alarm in" in (tmp_path / "verdict.txt").read_text()
