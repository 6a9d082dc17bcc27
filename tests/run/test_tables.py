"""Tables of a run whose fits are made by hand."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
from handmade_fits import ONE_OF_EACH, N, batches_of, fits_of, layer_of
from rich.console import Console

from gmmcnn import config
from gmmcnn.analysis import Analysis
from gmmcnn.run import tables
from gmmcnn.run.folder import Checkpoint


def analysed(*layers) -> Analysis:
    fits = fits_of(*layers)
    n = fits.n_batches * N
    known = pd.DataFrame({"batch": np.arange(n) // N, "label": np.arange(n) % 10})
    return Analysis(fits, known, np.zeros((n, 1, 1), np.uint8), config.Screen(), name="network X")


EARLY = Checkpoint("epoch-0001", 1, Path("1.pt"), Path("early"))
LATE = Checkpoint("epoch-0003", 3, Path("3.pt"), Path("late"))
FLAGGED = layer_of([[37, 3]] * 5, ch=[10] * 5, activation=[1] * 5)
ANALYSES = {EARLY: analysed(ONE_OF_EACH), LATE: analysed(FLAGGED)}
METRICS = pd.DataFrame({"epoch": [1, 2, 3], "train_loss": [3.0, 2.0, 1.0]})


def test_rows_of_all_checkpoints_follow_each_other(tmp_path):
    tables.write(tmp_path, ANALYSES, METRICS)
    filters = pd.read_csv(tmp_path / "filters.csv")
    assert filters["checkpoint"].tolist() == ["epoch-0001"] * 5 + ["epoch-0003"] * 5
    assert filters["epoch"].tolist() == [1] * 5 + [3] * 5
    assert list(filters.columns[:4]) == ["checkpoint", "epoch", "layer", "filter"]
    assert filters["anomalous"].tolist() == [True, False, False, False, False] + [True] * 5
    pd.testing.assert_frame_equal(
        pd.read_parquet(tmp_path / "filters.parquet"), filters, check_dtype=False, check_categorical=False
    )


def test_outliers_are_those_of_their_checkpoint(tmp_path):
    tables.write(tmp_path, ANALYSES, METRICS)
    outliers = pd.read_csv(tmp_path / "outliers.csv")
    assert outliers["checkpoint"].tolist() == ["epoch-0001"] * 3 + ["epoch-0003"] * 3
    assert outliers["sample"].tolist() == [37, 38, 39] * 2
    assert outliers["n_filters"].tolist() == [1] * 3 + [5] * 3
    assert outliers["label"].tolist() == [7, 8, 9] * 2


def test_counts_of_the_analysed_epochs_stand_beside_the_losses(tmp_path):
    counted = tables.write(tmp_path, ANALYSES, METRICS)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "metrics.csv"), counted, check_dtype=False)
    assert counted["train_loss"].tolist() == [3, 2, 1]
    assert counted["anomalous_filters"].fillna(-1).tolist() == [1, -1, 5]
    assert counted["flagged_per_batch"].fillna(-1).tolist() == [1, -1, 5]
    assert counted["live_filters"].fillna(-1).tolist() == [4, -1, 5]
    assert counted["outlier_samples"].fillna(-1).tolist() == [3, -1, 3]
    assert "checkpoint" not in counted


def test_a_network_that_was_not_trained_here_has_its_counts_alone(tmp_path):
    given = Checkpoint("given", None, Path("w.pt"), Path("given"))
    counted = tables.write(tmp_path, {given: analysed(ONE_OF_EACH)}, None)
    assert counted["checkpoint"].tolist() == ["given"]
    assert counted["epoch"].isna().all()
    assert pd.read_csv(tmp_path / "filters.csv")["epoch"].isna().all()


def test_flags_are_counted_in_a_probe_batch_on_average(tmp_path):
    unflagged = layer_of([[20, 20]] * 5, ch=[10] * 5, activation=[1] * 5)
    twice = {LATE: analysed(batches_of(FLAGGED, unflagged))}
    assert tables.write(tmp_path, twice, METRICS)["flagged_per_batch"].dropna().tolist() == [2.5]


def test_the_console_has_a_row_for_each_layer():
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(tables.layers(analysed(ONE_OF_EACH, FLAGGED)))
    rows = [line.split() for line in console.export_text().splitlines() if line.strip()]
    assert rows[0] == ["network", "X"]
    assert rows[1] == ["layer", "filters", "live", "unbalanced", "separated", "active", "anomalous"]
    assert rows[-2] == ["conv1", "5", "4", "3", "3", "3", "1"]
    assert rows[-1] == ["conv2", "5", "5", "5", "5", "5", "5"]
