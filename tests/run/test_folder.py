"""A run folder by name, and the record of how the work in it went."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from gmmcnn import config
from gmmcnn.errors import BusyError, ConfigurationError, StoreError
from gmmcnn.files import write_table
from gmmcnn.models import training
from gmmcnn.run.folder import Checkpoint, Run
from gmmcnn.run.lock import one_writer
from gmmcnn.tasks import execute

SETTINGS = config.Settings(
    data=config.Data(train_samples=100),
    model=config.Model(name="lenet5"),
    train=config.Train(epochs=4, checkpoint_epochs=[2, 4]),
    probe=config.Probe(samples=20, batches=2),
)


def trained(folder: Path, losses: list[float], kept: tuple[int, ...] = (2, 4)) -> Run:
    """A run folder after a training with these validation losses."""
    weights = folder / "checkpoints"
    weights.mkdir(parents=True)
    for epoch in kept:
        training.checkpoint_path(weights, epoch).touch()
    columns = dict.fromkeys(training.METRICS, 0.5)
    metrics = pd.DataFrame({**columns, "epoch": range(1, len(losses) + 1), "validation_loss": losses})
    write_table(weights / "metrics.csv", metrics)
    return Run(SETTINGS, folder)


def test_parts_of_a_checkpoint_lie_in_its_folder():
    checkpoint = Checkpoint("best", 3, Path("w.pt"), Path("RUN/activations/best"))
    assert checkpoint.maps == Path("RUN/activations/best/maps.zarr")
    assert checkpoint.fits == Path("RUN/activations/best/fits")
    assert checkpoint.taps == Path("RUN/activations/best/taps.json")


@pytest.mark.parametrize(
    ("losses", "names"),
    [
        ([4, 3, 2, 1], ["epoch-0002", "epoch-0004"]),  # the best of all is one that was kept
        ([4, 3, 1, 2], ["epoch-0002", "best", "epoch-0004"]),
        ([1, 3, 2, 4], ["best", "epoch-0002", "epoch-0004"]),
        ([4, 1, 1, 2], ["epoch-0002", "epoch-0004"]),  # the first of equals
    ],
)
def test_checkpoints_are_those_kept_and_the_best_by_epoch(tmp_path, losses, names):
    found = trained(tmp_path, losses).checkpoints()
    assert [checkpoint.name for checkpoint in found] == names
    assert [checkpoint.epoch for checkpoint in found] == sorted(checkpoint.epoch for checkpoint in found)
    assert {checkpoint.folder.parent for checkpoint in found} == {tmp_path / "activations"}
    best = [checkpoint.weights for checkpoint in found if checkpoint.name == "best"]
    assert best == [tmp_path / "checkpoints" / "best.pt"] * len(best)


def test_a_training_that_is_not_finished_is_told(tmp_path):
    with pytest.raises(ConfigurationError, match=r"is missing; train first: gmmcnn task=train run="):
        trained(tmp_path, [1, 2], kept=(2,)).checkpoints()


def test_metrics_that_are_damaged_are_told_with_the_task_that_writes_them(tmp_path):
    job = trained(tmp_path, [4, 3, 2, 1])
    (tmp_path / "checkpoints" / "metrics.csv").write_text("epoch\n1\n")
    with pytest.raises(StoreError, match=r"metrics\.csv: damaged .*gmmcnn task=train run="):
        job.checkpoints()
    with pytest.raises(StoreError, match=r"filters\.csv: missing; write it: gmmcnn task=screen run="):
        job.table("filters.csv", "screen", ("layer",))


def test_weights_that_are_given_and_maps_that_are_imported_are_one_checkpoint(tmp_path):
    given = Run(replace(SETTINGS, model=config.Model(checkpoint="w.pt")), tmp_path)
    assert given.checkpoints() == [Checkpoint("given", None, Path("w.pt"), tmp_path / "activations" / "given")]
    assert not given.trained_here
    imported = Run(replace(SETTINGS, extract=config.Extract(source="maps.npy")), tmp_path)
    assert imported.checkpoints() == [Checkpoint("imported", None, None, tmp_path / "activations" / "imported")]
    assert not imported.trained_here
    assert Run(SETTINGS, tmp_path).trained_here


def test_the_title_says_network_data_and_noise(tmp_path):
    assert Run(SETTINGS, tmp_path).title == "lenet5 on digits"
    noisy = replace(SETTINGS, data=config.Data(label_noise=0.25))
    assert Run(noisy, tmp_path).title == "lenet5 on digits with 25% wrong labels"
    assert Run(replace(SETTINGS, extract=config.Extract(source="a/maps.npy")), tmp_path).title == (
        "feature maps of maps.npy"
    )


def test_data_and_probe_set_are_loaded_once_and_networks_are_new_ones(tmp_path):
    job = Run(SETTINGS, tmp_path)
    assert job.data() is job.data()
    assert job.probe() is job.probe()
    assert len(job.probe().samples) == 40
    first, second = job.network(), job.network()
    with torch.no_grad():
        first.conv1.weight.zero_()
    assert second.conv1.weight.any()
    assert job.network().conv1.weight.equal(second.conv1.weight)
    assert not job.network(first.state_dict()).conv1.weight.any()


def test_seconds_add_up_by_stage(tmp_path, monkeypatch):
    clock = iter([0.0, 2.0, 10.0, 13.0, 20.0, 21.0])
    monkeypatch.setattr("gmmcnn.run.folder.time.perf_counter", lambda: next(clock))
    job = Run(SETTINGS, tmp_path)
    for stage in ("fit", "extract"):
        with job.timed(stage):
            pass
    with pytest.raises(ZeroDivisionError), job.timed("fit"):
        raise ZeroDivisionError
    assert job.timings == {"fit": 3.0, "extract": 3.0}


def broken_off(job: Run, error: BaseException, *, accepted: bool) -> None:
    """Work that ends in an error, before or after it accepted its settings."""
    with job.recorded():
        if accepted:
            job.accept()
        raise error


def record_of(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def test_a_task_that_ends_well_is_done_and_its_settings_are_the_folders(tmp_path):
    with Run(SETTINGS, tmp_path).recorded():
        assert record_of(tmp_path)["status"] == "running"
        assert not (tmp_path / "config.yaml").exists()
    record = record_of(tmp_path)
    assert (record["status"], record["task"], record["seed"]) == ("done", "run", 0)
    assert {"gmmcnn", "torch", "python"} <= record["versions"].keys()
    assert record["seconds"]["total"] >= 0
    assert "train_samples: 100" in (tmp_path / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("error", "status"), [(ZeroDivisionError("by zero"), "failed"), (KeyboardInterrupt(), "interrupted")]
)
def test_a_task_that_does_not_says_how_it_ended(tmp_path, error, status):
    job = Run(SETTINGS, tmp_path)
    with pytest.raises(type(error)), job.recorded():
        raise error
    assert record_of(tmp_path)["status"] == status
    assert record_of(tmp_path)["error"] == str(error)


def test_settings_that_are_refused_do_not_become_the_folders(tmp_path):
    with Run(SETTINGS, tmp_path).recorded():
        pass
    before = (tmp_path / "config.yaml").read_text()
    other = replace(SETTINGS, seed=7)
    for accepted in (False, True):
        with pytest.raises(ConfigurationError):
            broken_off(Run(other, tmp_path), ConfigurationError("impossible"), accepted=accepted)
        assert (tmp_path / "config.yaml").read_text() == before
        assert record_of(tmp_path)["status"] == "failed"


def test_settings_of_work_that_broke_off_stay_the_folders(tmp_path):
    with Run(SETTINGS, tmp_path).recorded():
        pass
    with pytest.raises(KeyboardInterrupt):
        broken_off(Run(replace(SETTINGS, seed=7), tmp_path), KeyboardInterrupt(), accepted=True)
    assert "seed: 7" in (tmp_path / "config.yaml").read_text()


def test_seconds_of_earlier_tasks_are_kept_but_for_their_total(tmp_path):
    for stage, seconds in (("fit", 2.0), ("fit", 3.0), ("prune", 1.0)):
        job = Run(SETTINGS, tmp_path)
        with job.recorded():
            job.timings[stage] = seconds
    found = record_of(tmp_path)["seconds"]
    assert (found["fit"], found["prune"]) == (5.0, 1.0)
    assert found["total"] < 1


@pytest.mark.parametrize("task", ["run", "train", "fit", "screen", "report", "repair", "experiment"])
def test_a_folder_in_which_another_process_works_is_left_alone(tmp_path, task):
    with one_writer(tmp_path, "extract"):
        with pytest.raises(BusyError, match=r"task=extract works there since .*; wait for its end"):
            execute(replace(SETTINGS, task=task), tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
