"""Curves reach TensorBoard, MLflow and Weights & Biases, without a network, and never cost a result."""

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import gmmcnn
from gmmcnn import config, tracking
from gmmcnn.errors import ConfigurationError, TrackingWarning
from gmmcnn.tasks import execute

SMALL = config.Settings(
    data=config.Data(train_samples=80),
    train=config.Train(epochs=3, checkpoint_epochs=[1, 3]),
    probe=config.Probe(samples=40, batches=2),
    gmm=config.Gmm(k_max=3, n_init=1, repeats=1),
    engine=config.Engine(threads=1),
    prune=config.Prune(controls=1),
)


@pytest.fixture(autouse=True)
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the services take from their surroundings: files below the test's folder, and no network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")


def settings(**chosen: Any) -> config.Settings:
    from dataclasses import replace

    return replace(SMALL, task="run", tracking=config.Tracking(**chosen))


def of_tensorboard(folder: Path) -> dict[str, dict[int, float]]:
    """Curve → epoch → value, as TensorBoard reads it."""
    with tracking._others_warnings_left_out():
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(folder))
        events.Reload()
    return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def of_mlflow(run_id: str) -> tuple[Any, dict[str, dict[int, float]]]:
    """A run, and curve → epoch → value."""
    with tracking._others_warnings_left_out():
        from mlflow.tracking import MlflowClient

        client = MlflowClient()
        run = client.get_run(run_id)
        names = run.data.metrics
        return run, {name: {m.step: m.value for m in client.get_metric_history(run_id, name)} for name in names}


def test_a_run_tells_losses_and_counts_to_tensorboard_and_mlflow(tmp_path):
    folder = tmp_path / "run"
    execute(settings(tensorboard=True, mlflow=True, project="trial"), folder)
    table = pd.read_csv(folder / "metrics.csv").set_index("epoch")
    run, curves = of_mlflow(json.loads((folder / "tracking.json").read_text())["mlflow"])
    for found in (of_tensorboard(folder / "tensorboard"), curves):
        assert found["train/loss"] == pytest.approx(table["train_loss"].to_dict())
        assert found["validation/accuracy"] == pytest.approx(table["validation_accuracy"].to_dict())
        assert found["gmmcnn/flagged_per_batch"] == pytest.approx(table["flagged_per_batch"].dropna().to_dict())
    assert run.info.status == "FINISHED"
    assert (run.data.params["gmm.k_max"], run.data.params["seed"]) == ("3", "0")
    execute(settings(tensorboard=True, mlflow=True, project="trial"), folder)  # goes on in the same run
    again, _ = of_mlflow(run.info.run_id)
    assert again.info.run_id == run.info.run_id
    assert json.loads((folder / "tracking.json").read_text()) == {"mlflow": run.info.run_id}


def test_weights_and_biases_offline(tmp_path):
    tracker = tracking.WandB("trial", "a run", tmp_path)
    tracker.describe({"seed": 3})
    tracker.log({"train/loss": 0.5}, 2)
    tracker.close()
    (kept,) = (tmp_path / "wandb").glob("offline-run-*")
    assert kept.name.endswith(tracker.run_id)
    assert b"train/loss" in next(kept.glob("*.wandb")).read_bytes()


def test_a_monitor_tells_each_row_of_its_history(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU())
    tracker = tracking.TensorBoard(tmp_path)
    monitor = gmmcnn.OverfittingMonitor(model, torch.rand(30, 1, 6, 6), k_max=3, n_init=1, tracker=tracker)
    for epoch in (1, 2):
        monitor.step(epoch)
    tracker.close()
    flagged = of_tensorboard(tmp_path)["gmmcnn/flagged"]
    assert flagged == monitor.history.set_index("epoch")["flagged"].to_dict()


class Failing:
    """A service that goes away."""

    def describe(self, settings: Any) -> None: ...

    def log(self, values: Any, step: int) -> None:
        raise OSError(28, "No space left on device")

    def close(self) -> None:
        raise AssertionError("left out, so not closed")


def test_a_service_that_fails_is_left_out_and_the_others_go_on(tmp_path):
    board = tracking.TensorBoard(tmp_path)
    trackers = tracking.Trackers({"wandb": Failing(), "tensorboard": board})
    with pytest.warns(TrackingWarning, match=r"tracking=wandb: left out from here on: .*No space left on device"):
        trackers.log({"a": 1.0}, 1)
    trackers.log({"a": 2.0}, 2)
    trackers.close()
    assert of_tensorboard(tmp_path) == {"a": {1: 1.0, 2: 2.0}}


@pytest.mark.parametrize("name", tracking.KINDS)
def test_a_missing_package_is_named_before_anything_is_done(name, tmp_path, monkeypatch):
    for module in list(sys.modules):
        if module.split(".")[0] in ("mlflow", "wandb", "tensorboard") or module.startswith("torch.utils.tensorboard"):
            monkeypatch.delitem(sys.modules, module)
    for module in ("mlflow", "wandb", "tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigurationError, match=rf"tracking={name}: needs .*: pip install 'gmmcnn\[tracking\]'"):
        execute(settings(**{name: True}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_service_that_refuses_the_run_ends_it_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://nowhere")
    with pytest.raises(ConfigurationError, match=r"tracking=mlflow: cannot be opened: .*nonsense"):
        execute(settings(mlflow=True), tmp_path / "run")
