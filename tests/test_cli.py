"""The command line as people use it, in processes of its own."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from gmmcnn import cli, config, progress
from gmmcnn.filters import live
from gmmcnn.run.alive import is_alive

TINY = ["debug=tiny", "train.epochs=2", "engine.threads=1"]


def gmmcnn(*arguments: str, cwd: Path, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-W", "error", "-m", "gmmcnn", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, env=environment, **options)


@pytest.fixture
def here(tmp_path, monkeypatch, capsys):
    """Run the command line in this process and an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["gmmcnn", *arguments])
        monkeypatch.setattr(cli, "_exit_codes", [])
        try:
            cli.main()
        except SystemExit as stop:
            return int(stop.code or 0), *capsys.readouterr()
        return 0, *capsys.readouterr()

    return run


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
    assert lines[0].startswith("simple_cnn on digits: 2 epochs on ")
    assert lines[1].startswith("Trained 2 epochs: training accuracy ")
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


def test_stages_one_by_one_give_the_tables_of_a_whole_run(tiny_run, tmp_path, here):
    assert here(*TINY, "run=steps", "task=train")[0] == 0
    for task in ("extract", "fit", "screen", "prune", "report"):
        code, _, stderr = here("run=steps", f"task={task}")
        assert code == 0, stderr
    for name in ("filters.csv", "outliers.csv", "metrics.csv", "mask.json"):
        assert (tmp_path / "steps" / name).read_bytes() == (tiny_run / name).read_bytes()


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_says_how_to_go_on(number, exit_code, tmp_path):
    command = [sys.executable, "-m", "gmmcnn", "task=train", "train.epochs=500", "run=folder"]
    # Whoever runs the tests in the background of a shell passes on that Ctrl-C is ignored.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    while not (tmp_path / "folder" / "checkpoints" / "last.pt").exists():
        time.sleep(0.02)
        assert process.poll() is None
    running = json.loads((tmp_path / "folder" / "run.json").read_text())
    assert (running["status"], running["pid"], is_alive(running)) == ("running", process.pid, True)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == exit_code
    assert "interrupted; goes on where it stopped with: gmmcnn task=train run=" in stderr
    assert stderr.count("\n") == 1
    ended = json.loads((tmp_path / "folder" / "run.json").read_text())
    assert (ended["status"], is_alive(ended)) == ("interrupted", False)


def test_a_run_that_was_asked_to_end_finishes_the_round_in_hand_and_goes_on_bit_for_bit(tiny_run, here, monkeypatch):
    reduce, done = live.reduce_maps, []

    def asked_meanwhile(*arguments):
        if not done:
            os.kill(os.getpid(), signal.SIGTERM)
        reduced = reduce(*arguments)
        done.append(reduced)
        return reduced

    monkeypatch.setattr(live, "reduce_maps", asked_meanwhile)
    code, _, stderr = here(*TINY, "run=asked")
    assert code == 143
    assert stderr.startswith("gmmcnn: interrupted; goes on where it stopped with: gmmcnn task=run run=")
    assert stderr.count("\n") == 1
    record = json.loads(Path("asked/run.json").read_text())
    assert record["status"] == "interrupted"
    assert (len(done), len(list(Path("asked").rglob("*.scores/*.npz")))) == (3, 1)  # the scores of three layers
    monkeypatch.setattr(live, "reduce_maps", reduce)
    code, _, stderr = here("run=asked")
    assert code == 0, stderr
    for name in ("filters.csv", "outliers.csv", "metrics.csv", "samples.csv"):
        assert Path("asked", name).read_bytes() == (tiny_run / name).read_bytes()


def test_a_sweep_is_done_once_and_aggregated(tmp_path):
    command = ["-m", "seed=0,1", *TINY, "task=train", "hydra.launcher.jobs=2"]
    done = gmmcnn(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (sweep,) = (tmp_path / "multirun").iterdir()
    folders = [sweep / "seed-0", sweep / "seed-1"]
    assert [json.loads((folder / "run.json").read_text())["seed"] for folder in folders] == [0, 1]
    assert not (tmp_path / "runs").exists()
    assert pd.read_csv(sweep / "jobs.csv")["status"].tolist() == ["done", "done"]
    found = pd.read_csv(sweep / "aggregate.csv").set_index("quantity")
    accuracies = [pd.read_csv(folder / "checkpoints" / "metrics.csv")["train_accuracy"].iloc[-1] for folder in folders]
    assert found.loc["train_accuracy", ["mean", "n"]].tolist() == [np.mean(accuracies), 2]
    assert "2 jobs: 2 done; tables: " in done.stdout
    assert "Trained 2 epochs" in (sweep / ".jobs" / "seed-0.log").read_text()


def test_a_sweep_that_failed_is_told_and_done_again(here, monkeypatch):
    def in_this_process(sweep, names, settings, work, advance):
        for name in names:
            work(str(sweep.folder), name)
            advance()

    monkeypatch.setattr("gmmcnn.multirun.local.run", in_this_process)
    monkeypatch.setattr("gmmcnn.multirun.work._write_to", lambda log: None)
    code, stdout, _ = here("-m", "sweep=mine", "seed=0,1", "task=extract", "train.epochs=1", "data.train_samples=60")
    assert code == 1
    assert stdout.count("failed: ") == 2
    assert stdout.count("train first") == 2
    assert "2 jobs: 2 failed; tables: mine/jobs.csv, mine/aggregate.csv" in stdout
    code, stdout, _ = here("-m", "sweep=mine")
    assert code == 1
    assert "Sweep: mine: 2 of 2 jobs to do" in stdout
    code, stdout, _ = here("task=aggregate", "sweep=mine")
    assert code == 0
    assert "2 jobs: 2 failed" in stdout


def test_runs_started_at_once_do_not_collide(tmp_path):
    command = [sys.executable, "-m", "gmmcnn", "task=screen"]  # fails for want of a training, after making its folder
    started = [subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait() for process in started] == [2, 2]
    assert len(list((tmp_path / "runs").glob("*/*"))) == 2


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
        (["-m", "sweep=nowhere"], "nowhere/sweep.json: missing; expected the record of a sweep"),
        (["task=aggregate"], "task=aggregate: of which sweep? expected sweep=FOLDER"),
        (["sweep=here", "seed=1"], "sweep=here: expected gmmcnn -m sweep=FOLDER, or task=aggregate with it"),
        (["-m", "seed=0,1", "hydra.launcher.jobs=0"], "hydra.launcher.jobs=0: expected >= 1"),
        (["-m", "seed=0,1", "hydra/launcher=slum"], "hydra/launcher=slum: expected one of "),
        (["tracking=[tensorboard,nix]"], "tracking=nix: expected one of mlflow, tensorboard, wandb"),
        (["-m", "seed=0,1", "hydra.launcher.job=2"], "hydra.launcher.job: Key 'job' not in 'LocalLauncher'"),
        (["demo.plant=3"], "demo.plant: is probe.plant now"),
        (["nonsense"], "'nonsense' is not key=value"),
        (
            ["model.kwargs={a:[b=c]}"],
            "'model.kwargs={a:[b=c]}' is not key=value; a value that holds = or spaces needs quotes",
        ),
        (
            ["task=fly"],
            "task=fly: expected one of run, train, extract, fit, screen, samples, prune, report, verify, repair, ",
        ),
    ],
)
def test_a_wrong_configuration_ends_with_2_before_any_work(arguments, message, here):
    code, _, stderr = here(*arguments)
    assert code == 2
    assert stderr.startswith(f"gmmcnn: {message}")
    assert stderr.count("\n") == 1
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize(
    ("code", "arguments", "message"),
    [
        (2, ["task=extract"], "epoch-0001.pt is missing; train first: gmmcnn task=train run="),
        (1, ["data=cifar10", "data.root=nowhere"], "nowhere"),
        (2, ["probe.samples=5000"], "probe.samples=5000: the training set has "),
        (2, ["probe.plant=61", "probe.samples=50"], "probe.plant=61: the probe set has 50 samples"),
        (2, ["model.name=no_such_module.Net", "probe.samples=50"], "model.name=no_such_module.Net: cannot import"),
        (1, ["model.checkpoint=none.pt", "probe.samples=50"], "none.pt: no such checkpoint"),
        (2, ["extract.layers=[conv]", "probe.samples=50"], "layer 'conv': the model has no convolution of that name"),
        (2, ["extract.layers=[]", "probe.samples=50"], "layers=[]: expected at least one of features.conv1, "),
        (1, ["device=cuda"], "device=cuda: torch sees no CUDA device; CUDA_VISIBLE_DEVICES="),
        (1, ["engine=cuda"], "engine=cuda: CuPy cannot be imported"),
        (1, ["extract.source=none.npy"], "none.npy"),
    ],
)
def test_a_failed_run_ends_with_one_line_before_training(code, arguments, message, here, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    ended_with, _, stderr = here("train.epochs=1", "data.train_samples=60", *arguments, "debug=false")
    assert ended_with == code
    assert stderr.startswith("gmmcnn: ")
    assert message in stderr
    assert stderr.count("\n") == 1
    record = json.loads(next(Path("runs").rglob("run.json")).read_text())
    assert record["status"] == "failed"
    assert message in record["error"]
    assert not list(Path("runs").rglob("checkpoints"))


@pytest.mark.parametrize("content", ["task: [", "run", "- a: b", "", "\x00"])
def test_damaged_settings_of_a_run_are_named(content, here):
    stored = Path("first/.hydra/overrides.yaml")
    stored.parent.mkdir(parents=True)
    stored.write_text(content)
    code, _, stderr = here("run=first")
    assert code == 2
    assert stderr.startswith(f"gmmcnn: {stored}: damaged; expected the settings of that run")
    assert stderr.count("\n") == 1


@pytest.mark.parametrize("folder", ["file", "file/below", "/proc/nowhere/at/all"])
def test_a_run_folder_that_cannot_be_made_is_named(folder, here):
    Path("file").write_text("text")
    code, _, stderr = here(f"run={folder}", "task=train", "seed=1")
    assert code == 2
    assert stderr.startswith("gmmcnn: " + folder.partition("/nowhere")[0])
    assert stderr.endswith("expected a run folder that can be written: run=FOLDER\n")
    assert stderr.count("\n") == 1


def test_debug_shows_the_traceback(here):
    code, _, stderr = here("task=extract", "debug=true")
    assert code == 2
    assert "Traceback" in stderr


def test_a_failure_nobody_foresaw_says_how_to_see_more(here, monkeypatch):
    monkeypatch.setattr("gmmcnn.tasks.execute", lambda *_: {}["key"])
    code, _, stderr = here("task=train")
    assert code == 1
    (again,) = re.findall(r"^gmmcnn: unexpected KeyError: 'key'; see the traceback with: (.*)$", stderr, re.MULTILINE)
    assert re.fullmatch(r"gmmcnn task=train run=\S+/runs/\S+ debug=true", again)
    assert stderr.count("\n") == 1


def test_the_same_in_a_process_of_its_own(tmp_path):
    assert gmmcnn("gmm.kmax=3", cwd=tmp_path).returncode == 2
    done = gmmcnn("task=extract", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_doctor_tests_the_engines_and_estimates_the_job(here):
    code, stdout, stderr = here("task=doctor", "estimate=true", "engine=cpu", "gmm.k_max=3", "gmm.repeats=1")
    assert code == 0, stderr
    assert re.search(r"estimate  \S+ s on the cpu engine to fit 112 filters in 7 batches of N = 200", stdout)
    assert stdout.splitlines()[-1].startswith("verdict   all engines of this machine agree")


def test_help_lists_what_exists(here):
    _, text, _ = here("--help")
    for task in config.TASKS:
        assert re.search(rf"^ +{task} ", text, re.MULTILINE)
    assert "model: alexnet, lenet5, resnet20, resnet8, simple_cnn" in text


def test_help_explains_every_setting(here):
    _, said, _ = here("--help")
    assert "    gmm.k_max=10\n      Most components K that are tried" in said
    assert 'eval "$(gmmcnn -sc install=bash)"' in said


def test_a_run_that_cannot_be_promises_nothing(here):
    code, said, complaint = here("model.name=no_package:Net", *TINY)
    assert (code, said) == (2, "")
    assert "cannot import 'no_package'" in complaint


@pytest.mark.parametrize("where", [[], ["run=out"], ["run=there"], ["run=deep/er"]])
def test_a_dry_run_says_what_it_would_do_makes_nothing_and_removes_nothing(where, here, tmp_path):
    (tmp_path / "there").mkdir()
    code, said, _ = here("task=extract", "dry_run=true", *where, *TINY)
    assert code == 0
    assert "Nothing was done or written" in said
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


def test_a_dry_run_is_of_one_run(here, tmp_path):
    code, _, complaint = here("-m", "dry_run=true", "seed=0,1", *TINY)
    assert code == 2
    assert "dry_run=true: shows what one run would do; leave out -m" in complaint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("written", "taken"),
    [
        ("-q -m seed=0,1 model=lenet5", "-m seed=0,1 model=lenet5 quiet=true"),
        ("seed=0 --quiet -m", "seed=0 quiet=true -m"),
        ("--config-dir=more -q", "--config-dir=more quiet=true"),
        ("task=run", "task=run"),
    ],
)
def test_q_may_stand_anywhere(written, taken):
    assert cli._spelt_out(written.split()) == taken.split()


def test_a_quiet_sweep_writes_nothing_and_is_the_same_sweep(here, monkeypatch, tmp_path):
    sweep = ["-m", "seed=0,1", "sweep=s", "task=train", *TINY]
    monkeypatch.setattr(progress, "_hushed", threading.Event())
    assert here("-q", *sweep) == (0, "", "")
    monkeypatch.setattr(progress, "_hushed", threading.Event())
    code, said, _ = here(*sweep)
    assert code == 0
    assert "0 of 2 jobs to do; 2 done" in said


@pytest.mark.parametrize("quiet", ["-q", "--quiet", "quiet=true"])
def test_quiet_writes_nothing_but_errors(quiet, here, monkeypatch):
    monkeypatch.setattr(progress, "_hushed", threading.Event())
    assert here(quiet, "task=train", *TINY, "run=quiet") == (0, "", "")
    code, said, complaint = here(quiet, "run=quiet", "task=screen")
    assert (code, said) == (1, "")
    assert complaint.startswith("gmmcnn: ")


def test_a_network_given_by_its_weights_is_analysed_and_not_trained(here, digits_training):
    weights = digits_training.checkpoints[-1][1]
    quick = ["probe.samples=100", "probe.batches=2", "gmm.k_max=3", "gmm.repeats=1", "prune.controls=2", "run=out"]
    code, stdout, stderr = here(f"model.checkpoint={weights}", *quick)
    assert code == 0, stderr
    assert "Trained" not in stdout
    assert set(pd.read_csv("out/filters.csv")["checkpoint"]) == {"given"}
    assert not Path("out/checkpoints").exists()
    assert "Report: " in stdout


def test_feature_maps_from_elsewhere_become_tables_and_a_page(tmp_path):
    rng = np.random.default_rng(0)
    maps = np.maximum(rng.normal(1, 1, (120, 5, 4, 4)), 0).astype(np.float32)
    maps[:3, 2] += 50  # three samples far from all others in filter 2
    np.save(tmp_path / "maps.npy", maps)
    done = gmmcnn("extract.source=maps.npy", "gmm.k_max=4", "gmm.repeats=1", "run=out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    outliers = pd.read_csv(tmp_path / "out" / "outliers.csv")
    assert outliers.query("filters.str.contains('imported:2')")["sample"].tolist() == [0, 1, 2]
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000

    maps[:3, 2] -= 50
    maps[7:9, 4] += 50  # the same file with other content: no fit of the earlier one may be reused
    np.save(tmp_path / "maps.npy", maps)
    assert gmmcnn("run=out", cwd=tmp_path).returncode == 0
    outliers = pd.read_csv(tmp_path / "out" / "outliers.csv")
    assert outliers.query("filters.str.contains('imported:4')")["sample"].tolist() == [7, 8]


def test_maps_of_another_probe_set_are_not_mistaken(tiny_run, tmp_path, here):
    shutil.copytree(tiny_run, tmp_path / "first")
    code, _, stderr = here("run=first", "task=screen", "probe.batches=1")
    assert code == 2
    assert "holds feature maps of other probe samples (made with probe.batches=2); give what they were" in stderr


def test_a_half_made_store_is_gone_on_with(tiny_run, tmp_path, here):
    folder = shutil.copytree(tiny_run, tmp_path / "first") / "activations" / "epoch-0002"
    (folder / "taps.json").unlink()  # as when killed before the store was complete
    shutil.rmtree(folder / "fits")
    record = sorted((folder / "maps.zarr" / "complete").glob("*.json"))
    record[-1].unlink()
    kept = record[0].stat().st_mtime_ns
    code, _, stderr = here("run=first", "task=extract")
    assert code == 0, stderr
    assert record[0].stat().st_mtime_ns == kept
    assert record[-1].exists()


@pytest.mark.parametrize("output", ["| head -n 1", "> /dev/full 2>&1", ">&- 2>&-"])
def test_nobody_who_listens_ends_no_work(output, tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "unheard")
    (tmp_path / "unheard" / "filters.csv").unlink()
    command = f"'{sys.executable}' -m gmmcnn run=unheard {output}"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "unheard" / "run.json").read_text())["status"] == "done"
    assert (tmp_path / "unheard" / "filters.csv").read_bytes() == (tiny_run / "filters.csv").read_bytes()


def test_a_terminal_without_greek_letters_ends_no_work(tiny_run, tmp_path):
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    command = [sys.executable, "-m", "gmmcnn", f"run={tiny_run}", "task=screen"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "K_max/N" in done.stdout
