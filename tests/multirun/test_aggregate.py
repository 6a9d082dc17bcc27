"""Tables over the runs of a sweep."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from gmmcnn.multirun.aggregate import aggregate, shown, summary
from gmmcnn.multirun.record import Job, Sweep


def ran(sweep: Sweep, job: Job, accuracy: float, verdict: str | None = None) -> None:
    """Leave behind what a run would."""
    run = sweep.folder_of(job)
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"status": "done", "started": "2026", "seconds": {"total": 2.5}}))
    metrics = pd.DataFrame({"epoch": [1, 2], "train_accuracy": [0.1, accuracy], "anomalous_filters": [np.nan, 4]})
    metrics.to_csv(run / "metrics.csv", index=False)
    masks = pd.DataFrame({"mask": ["none", "random", "random"], "control": [0, 0, 1], "validation_accuracy": [1, 2, 4]})
    masks.to_csv(run / "masking.csv", index=False)
    if verdict:
        folder = run / "experiments" / "planted-smoke"
        folder.mkdir(parents=True)
        estimates = pd.DataFrame(
            {"name": ["power"], "value": [accuracy], "claim": "they are found", "verdict": verdict}
        )
        estimates.to_csv(folder / "estimates.csv", index=False)


@pytest.fixture
def sweep(tmp_path) -> Sweep:
    """Three seeds of two settings, of which one job did not run."""
    asked = [[f"gmm.k_max={k_max}", f"seed={seed}"] for k_max in (4, 6) for seed in range(3)]
    sweep = Sweep.opened(tmp_path / "sweep", asked)
    for number, job in enumerate(sweep.jobs[:5]):
        ran(sweep, job, number / 10, "supported" if number else "inconclusive")
    return sweep


def value(found: pd.DataFrame, k_max: int, quantity: str) -> pd.Series:
    return found[(found["gmm.k_max"] == str(k_max)) & (found["quantity"] == quantity)].iloc[0]


def test_means_and_intervals_are_over_seeds(sweep):
    _, found = aggregate(sweep)
    row = value(found, 4, "train_accuracy")
    low, high = stats.t.interval(0.95, 2, loc=0.1, scale=stats.sem([0, 0.1, 0.2]))
    assert row["n"] == 3
    np.testing.assert_allclose([row["mean"], row["low"], row["high"]], [0.1, low, high])
    assert value(found, 6, "train_accuracy")["n"] == 2
    assert value(found, 6, "anomalous_filters")["mean"] == 4
    assert value(found, 4, "random masked: validation_accuracy")["mean"] == 3
    assert value(found, 4, "planted-smoke: power")["n"] == 3
    assert "epoch" not in set(found["quantity"])


def test_of_verdicts_the_share_is_told(sweep):
    _, found = aggregate(sweep)
    assert value(found, 4, "verdict: they are found: supported")["mean"] == pytest.approx(2 / 3)
    assert value(found, 4, "verdict: they are found: inconclusive")["mean"] == pytest.approx(1 / 3)
    assert value(found, 6, "verdict: they are found: supported")["mean"] == 1


def test_every_job_has_a_row(sweep):
    (sweep.folder / ".jobs" / f"{sweep.jobs[5].name}.json").write_text(
        json.dumps({"status": "failed", "line": "no such file", "host": "node7", "pid": 3, "ended": "2026"})
    )
    jobs, _ = aggregate(sweep)
    assert jobs["status"].tolist() == ["done"] * 5 + ["failed"]
    last = jobs.iloc[5]
    assert (last["line"], last["host"], last["pid"], last["seed"]) == ("no such file", "node7", 3, "2")
    assert jobs["seconds"].tolist()[:5] == [2.5] * 5
    assert summary(jobs) == "6 jobs: 5 done, 1 failed"
    assert pd.read_csv(sweep.folder / "jobs.csv")["job"].tolist() == [job.name for job in sweep.jobs]


def test_the_table_for_the_console_has_a_row_for_each_setting(sweep):
    _, found = aggregate(sweep)
    table = shown(found)
    assert table is not None
    assert [str(column.header) for column in table.columns] == ["gmm.k_max", "n", "anomalous", "training"]
    assert table.row_count == 2


@pytest.mark.parametrize("asked", [[["seed=0"]], [["seed=0"], ["seed=1"]]])
def test_before_anything_is_done_there_are_states_and_no_numbers(tmp_path, asked):
    sweep = Sweep.opened(tmp_path, asked)
    jobs, found = aggregate(sweep)
    assert set(jobs["status"]) == {"waiting"}
    assert found.empty
    assert shown(found) is None
    assert Path(tmp_path / "aggregate.csv").read_text() == "quantity,mean,low,high,n\n"


def test_one_run_has_no_interval(tmp_path):
    sweep = Sweep.opened(tmp_path, [["seed=0"]])
    ran(sweep, sweep.jobs[0], 0.5)
    (tmp_path / "job" / "masking.csv").write_text("damaged")
    _, found = aggregate(sweep)
    row = found.set_index("quantity").loc["train_accuracy"]
    assert (row["mean"], row["n"]) == (0.5, 1)
    assert np.isnan([row["low"], row["high"]]).all()
    assert shown(found).row_count == 1
