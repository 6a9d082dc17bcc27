"""The page of a sweep holds what it was given, escaped, whatever is missing."""

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd

from gmmcnn.report.sweep import RunOfSweep, SweepContent, render_sweep

METRICS = pd.DataFrame(
    {
        "epoch": [1, 2, 3], "train_loss": [2.0, 1.0, 0.5], "train_accuracy": [0.2, 0.6, 0.8],
        "flagged_per_batch": [0.5, np.nan, 2.0], "anomalous_filters": [0.0, np.nan, 1.0],
    }
)  # fmt: skip
FOUND = pd.DataFrame(
    {
        "gmm.k_max": ["4", "4"], "quantity": ["train_accuracy", "flagged_per_batch"], "mean": [0.75, 1.5],
        "low": [0.7, np.nan], "high": [0.8, np.nan], "n": [2, 1],
    }
)  # fmt: skip


def run(name: str = "seed-0", **more) -> RunOfSweep:
    settings = {"seed": name[-1], "gmm.k_max": "4"}
    about = {"status": "done", "line": "", "settings": settings, "group": "gmm.k_max=4", "seconds": 3.2, "report": None}
    return RunOfSweep(name, **about | more)


def content(*jobs: RunOfSweep) -> SweepContent:
    return SweepContent("mine", "2 jobs: 2 done", ["seed", "gmm.k_max"], "seed", jobs, FOUND)


def data_of(page: str) -> dict:
    return json.loads(re.search(r'id="data" type="application/json">(.*?)</script>', page, re.DOTALL)[1])


def test_runs_and_means_stand_in_the_page():
    page = render_sweep(content(run(metrics=METRICS, layers={"conv1": (1, 6)}, ranks={17: 0.25}), run("seed-1")))
    data = data_of(page)
    first, second = data["jobs"]
    assert first["metrics"]["flagged_per_batch"] == [0.5, None, 2.0]
    assert (first["layers"], first["ranks"]) == ({"conv1": [1, 6]}, {"17": 0.25})
    assert second["metrics"] is None
    shown = ["flagged_per_batch", "anomalous_filters", "train_accuracy", "train_loss"]
    assert [quantity["name"] for quantity in data["quantities"]] == shown
    assert "0.750 [0.700, 0.800]" in page
    assert ">1.50<" in page


def test_a_sweep_of_which_nothing_is_done_has_its_jobs_alone():
    page = render_sweep(replace(content(run(status="waiting", seconds=None)), found=FOUND.iloc[:0]))
    assert data_of(page)["quantities"] == []
    assert "Two runs" not in page
    assert "waiting" in page


def test_what_a_run_says_is_text():
    page = render_sweep(content(run(status="failed", line="<script>alert(1)</script>", metrics=METRICS)))
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
