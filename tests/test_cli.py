"""The command line as people use it, in processes of its own."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

TINY = ["debug=tiny", "train.epochs=2", "engine.threads=1"]


def gmmcnn(*arguments: str, cwd: Path, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-W", "error", "-m", "gmmcnn", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, env=environment, **options)


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory) -> Path:
    """A run folder of the whole pipeline at its smallest."""
    cwd = tmp_path_factory.mktemp("tiny")
    done = gmmcnn(*TINY, "run=first", cwd=cwd)
    assert done.returncode == 0, done.stderr
    (cwd / "first" / "stdout.txt").write_text(done.stdout)
    return cwd / "first"


def test_a_run_folder_holds_what_the_interface_promises(tiny_run):
    names = {path.name for path in tiny_run.iterdir()}
    expected = "config.yaml metrics.csv filters.csv filters.parquet outliers.csv report.html run.json mask.json"
    assert set(expected.split()) <= names
    record = json.loads((tiny_run / "run.json").read_text())
    assert record["status"] == "done"
    assert record["seed"] == 0
    assert set(record["seconds"]) >= {"train", "extract", "fit", "total"}
    assert record["versions"]["torch"]


def test_tables_cover_every_checkpoint_and_filter(tiny_run):
    filters = pd.read_csv(tiny_run / "filters.csv")
    assert filters.groupby("checkpoint").size().to_dict() == {"epoch-0001": 112, "epoch-0002": 112}
    pd.testing.assert_frame_equal(filters, pd.read_parquet(tiny_run / "filters.parquet"), check_dtype=False)
    metrics = pd.read_csv(tiny_run / "metrics.csv")
    assert metrics["epoch"].tolist() == [1, 2]
    counted = filters.groupby("epoch")["anomalous"].sum()
    assert metrics["anomalous_filters"].tolist() == counted.tolist()
    outliers = pd.read_csv(tiny_run / "outliers.csv")
    assert {"sample", "label", "n_filters", "filters"} <= set(outliers.columns)
    assert (outliers["sample"] < 100).all()


def test_only_the_last_checkpoint_keeps_its_maps(tiny_run):
    stores = sorted(path.parent.name for path in (tiny_run / "activations").glob("*/maps.zarr"))
    assert stores == ["epoch-0002"]


def test_the_summary_is_plain_and_ends_with_the_report(tiny_run):
    lines = (tiny_run / "stdout.txt").read_text().strip().splitlines()
    assert lines[0].startswith("Trained 2 epochs: training accuracy ")
    assert re.search(r"of 112 filters (is|are) anomalous|None of 112 filters is anomalous", "\n".join(lines))
    assert lines[-1] == f"Report: {tiny_run / 'report.html'}" or lines[-1].endswith("report.html")
    assert "\x1b" not in "\n".join(lines)


def test_screening_again_with_other_thresholds_refits_nothing(tiny_run, tmp_path):
    folder = shutil.copytree(tiny_run, tmp_path / "first")
    fits = sorted((folder / "activations").rglob("*.npz"))
    before = [path.stat().st_mtime_ns for path in fits]
    assert len(fits) >= 6
    strict = gmmcnn("run=first", "task=screen", "screen.activation_ratio=1000", cwd=tmp_path)
    assert strict.returncode == 0, strict.stderr
    assert "None of 112 filters is anomalous" in strict.stdout
    assert not pd.read_csv(folder / "filters.csv")["anomalous"].any()
    assert [path.stat().st_mtime_ns for path in fits] == before


def test_stages_one_by_one_give_the_tables_of_a_whole_run(tiny_run, tmp_path):
    assert gmmcnn(*TINY, "run=steps", "task=train", cwd=tmp_path).returncode == 0
    for task in ("extract", "fit", "screen", "prune", "report"):
        done = gmmcnn("run=steps", f"task={task}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    for name in ("filters.csv", "outliers.csv", "metrics.csv", "mask.json"):
        assert (tmp_path / "steps" / name).read_bytes() == (tiny_run / name).read_bytes()


def test_a_run_that_was_killed_goes_on_and_ends_alike(tiny_run, tmp_path):
    command = [sys.executable, "-m", "gmmcnn", *TINY, "run=killed"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed").rglob("*.npz")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list((tmp_path / "killed").rglob("*.npz"))
    done = gmmcnn("run=killed", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("filters.csv", "outliers.csv", "metrics.csv"):
        assert (tmp_path / "killed" / name).read_bytes() == (tiny_run / name).read_bytes()


def test_a_sweep_runs_every_job_in_a_folder_of_its_own(tmp_path):
    done = gmmcnn("-m", "seed=0,1", *TINY, "task=train", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folders = sorted((tmp_path / "multirun").glob("*/*/[01]"))
    assert [json.loads((folder / "run.json").read_text())["seed"] for folder in folders] == [0, 1]
    assert not (tmp_path / "runs").exists()


def test_runs_started_at_once_do_not_collide(tmp_path):
    command = [sys.executable, "-m", "gmmcnn", "task=screen"]  # fails for want of a training, after making its folder
    started = [subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL) for _ in range(3)]
    assert [process.wait() for process in started] == [1, 1, 1]
    assert len(list((tmp_path / "runs").glob("*/*"))) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gmm.kmax=3"], "gmm.kmax: no such setting; did you mean gmm.k_max?"),
        (
            ["model=lenet"],
            "model=lenet: expected one of alexnet, lenet5, resnet20, resnet8, simple_cnn; did you mean lenet5?",
        ),
        (["gmm.k_max=abc"], "gmm.k_max: Value 'abc' of type 'str' could not be converted to Integer"),
        (["gmm.k_max=64"], "gmm.k_max=64: expected a whole number from gmm.k_min=2 to 32"),
        (["-m", "gmm.k_max=4,1"], "gmm.k_max=1: expected a whole number"),
        (["-m", "seed=0,1", "run=here"], "run= in a sweep"),
        (["nonsense"], "'nonsense' is not key=value"),
        (["task=fly"], "task=fly: expected one of run, train, extract, fit, screen, prune, report"),
    ],
)
def test_a_wrong_configuration_ends_with_2_before_any_work(arguments, message, tmp_path):
    done = gmmcnn(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"gmmcnn: {message}")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["task=extract"], "epoch-0001.pt is missing; train first: gmmcnn task=train run="),
        (["data=cifar10", "data.root=nowhere"], "nowhere"),
        (["probe.samples=5000"], "probe.samples=5000: the training set has "),
        (["model.name=no_such_module.Net"], "model.name=no_such_module.Net: cannot import"),
        (["model.checkpoint=none.pt", "probe.samples=50"], "none.pt: no such checkpoint"),
        (["extract.layers=[conv]", "probe.samples=50"], "layer 'conv': the model has no Conv2d of that name"),
        (["extract.source=none.npy"], "none.npy"),
    ],
)
def test_a_failed_run_ends_with_1_and_one_line(arguments, message, tmp_path):
    done = gmmcnn("train.epochs=1", "data.train_samples=60", *arguments, "debug=false", cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert message in done.stderr
    assert done.stderr.startswith("gmmcnn: ")
    assert done.stderr.count("\n") == 1
    record = json.loads(next((tmp_path / "runs").rglob("run.json")).read_text())
    assert record["status"] == "failed"
    assert message in record["error"]


def test_debug_shows_the_traceback(tmp_path):
    done = gmmcnn("task=extract", "debug=true", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_help_lists_what_exists(tmp_path):
    text = gmmcnn("--help", cwd=tmp_path).stdout
    for task in ("run", "train", "extract", "fit", "screen", "prune", "report"):
        assert re.search(rf"^ +{task} ", text, re.MULTILINE)
    assert "model: alexnet, lenet5, resnet20, resnet8, simple_cnn" in text


def test_feature_maps_from_elsewhere_become_tables_and_a_page(tmp_path):
    rng = np.random.default_rng(0)
    maps = np.maximum(rng.normal(1, 1, (120, 5, 4, 4)), 0).astype(np.float32)
    maps[:3, 2] += 50  # three samples far from all others in filter 2
    np.save(tmp_path / "maps.npy", maps)
    done = gmmcnn("extract.source=maps.npy", "gmm.k_max=4", "run=out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    outliers = pd.read_csv(tmp_path / "out" / "outliers.csv")
    assert outliers.query("filters.str.contains('imported:2')")["sample"].tolist() == [0, 1, 2]
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000
