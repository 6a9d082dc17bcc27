"""What a page of a sweep says is read from the folders of its runs, as far as they have come."""

from pathlib import Path

import pandas as pd
import pytest

from gmmcnn.multirun import page
from gmmcnn.multirun.aggregate import aggregate
from gmmcnn.multirun.record import Status, Sweep


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """Three jobs: one screened, one trained, one not begun."""
    sweep = Sweep.opened(tmp_path / "mine", [[f"seed={seed}", "gmm.k_max=4"] for seed in range(3)])
    screened, trained, _ = map(sweep.folder_of, sweep.jobs)
    losses = {"epoch": [1, 2], "train_loss": [1.0, 0.5], "train_accuracy": [0.4, 0.9]}
    for folder in (screened, trained):
        (folder / "checkpoints").mkdir(parents=True)
        pd.DataFrame(losses).to_csv(folder / "checkpoints" / "metrics.csv", index=False)
    pd.DataFrame(losses | {"flagged_per_batch": [None, 3.0]}).to_csv(screened / "metrics.csv", index=False)
    at = {"checkpoint": ["epoch-0001"] * 2 + ["epoch-0002"] * 2}
    filters = pd.DataFrame(at | {"layer": ["a", "b"] * 2, "anomalous": [True, True, False, True]})
    filters.to_csv(screened / "filters.csv", index=False)
    samples = pd.DataFrame(at | {"dataset_index": [7, None, 7, 9], "memorisation_rank": [0.9, 0.8, 0.1, 0.2]})
    samples.to_csv(screened / "samples.csv", index=False)
    (screened / "report.html").write_text("a page")
    sweep.end(sweep.jobs[0], 0)
    return sweep


def test_runs_are_read_as_far_as_they_have_come(sweep):
    states = sweep.states()
    screened, trained, waiting = [page._run(sweep, job, states[job.name], ["seed"]) for job in sweep.jobs]
    assert screened.metrics["flagged_per_batch"].iloc[-1] == 3.0
    assert screened.layers == {"a": (0, 1), "b": (1, 1)}  # those of the last checkpoint
    assert screened.ranks == {7: 0.1, 9: 0.2}
    assert screened.report == f"{sweep.jobs[0].name}/report.html"
    assert list(trained.metrics["train_accuracy"]) == [0.4, 0.9]
    assert (trained.layers, trained.ranks, trained.report) == ({}, {}, None)
    assert (waiting.status, waiting.metrics) == (str(Status.WAITING), None)


def test_the_page_is_written_beside_the_tables(sweep):
    _, found = aggregate(sweep)
    path = page.write(sweep, "3 jobs: 1 done, 2 waiting", found)
    assert path == sweep.folder / "sweep.html"
    text = path.read_text()
    assert "3 jobs: 1 done, 2 waiting" in text
    assert all(job.name in text for job in sweep.jobs)
