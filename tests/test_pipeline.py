"""The order of the method, and what is kept of it; the stages themselves are tested where they are."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from gmmcnn import config, pipeline
from gmmcnn.run import stages
from gmmcnn.run.folder import Checkpoint, Run


def checkpoint(folder: Path, epoch: int) -> Checkpoint:
    found = Checkpoint(f"epoch-{epoch:04d}", epoch, folder / f"{epoch}.pt", folder / "activations" / f"{epoch}")
    found.maps.mkdir(parents=True)
    return found


@pytest.fixture
def done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was done, in order, with two checkpoints and stages that do nothing."""
    order: list[str] = []
    checkpoints = [checkpoint(tmp_path, 1), checkpoint(tmp_path, 2)]
    monkeypatch.setattr(Run, "checkpoints", lambda job: checkpoints)
    monkeypatch.setattr(Run, "require_own_training", lambda job: order.append("own training"))
    monkeypatch.setattr(stages, "require_possible", lambda job: order.append("possible"))
    monkeypatch.setattr(pipeline, "train", lambda job: order.append("train"))
    monkeypatch.setattr(
        stages, "open_checkpoint", lambda c: order.append(f"open {c.epoch}") or SimpleNamespace(checkpoint=c)
    )
    monkeypatch.setattr(
        stages, "fit_as_made", lambda job, stage, keep: order.append(f"fit {stage.checkpoint.epoch} {keep}") or stage
    )
    for name in ("extract", "fit", "analyse"):
        monkeypatch.setattr(
            stages, name, lambda job, stage, name=name: order.append(f"{name} {stage.checkpoint.epoch}") or stage
        )
    monkeypatch.setattr(pipeline, "_screen", lambda job, found: order.append(f"screen {len(found)}"))
    monkeypatch.setattr(pipeline, "_prune", lambda job, found: order.append(f"prune {found.checkpoint.epoch}"))
    return order


def job(folder: Path, **extract: object) -> Run:
    return Run(config.Settings(extract=config.Extract(**extract)), folder)


def test_the_method_from_top_to_bottom(done, tmp_path):
    found = pipeline.run(job(tmp_path))
    assert done == [
        "possible", "train", "open 1", "fit 1 False", "open 2", "fit 2 True", "analyse 1", "analyse 2", "screen 2",
        "prune 2",
    ]  # fmt: skip
    assert [one.checkpoint.epoch for one in found] == [1, 2]


@pytest.mark.parametrize(
    ("task", "order"),
    [
        ("extract", ["own training", "open 1", "extract 1", "open 2", "extract 2"]),
        ("fit", ["open 1", "fit 1", "open 2", "fit 2"]),
        ("screen", ["open 1", "analyse 1", "open 2", "analyse 2", "screen 2"]),
        ("prune", ["open 2", "analyse 2", "prune 2"]),
    ],
)
def test_each_task_does_its_part_alone(done, tmp_path, task, order):
    getattr(pipeline, task)(job(tmp_path))
    assert done == order


def test_the_network_as_it_is_now_is_that_of_the_last_checkpoint(done, tmp_path):
    assert pipeline.latest(job(tmp_path)).checkpoint.epoch == 2


@pytest.mark.parametrize(("keep", "kept"), [("none", []), ("last", [2]), ("all", [1, 2])])
def test_feature_maps_are_kept_as_asked_once_they_are_fitted(done, tmp_path, keep, kept):
    pipeline.run(job(tmp_path, keep_maps=keep))
    assert sorted(int(path.parent.name) for path in (tmp_path / "activations").glob("*/maps.zarr")) == kept


@pytest.mark.parametrize(
    "settings",
    [config.Settings(model=config.Model(checkpoint="w.pt")), config.Settings(extract=config.Extract(source="m.npy"))],
)
def test_a_network_that_is_given_is_not_trained(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline.training, "train", None)
    pipeline.train(Run(settings, tmp_path))
    assert not list(tmp_path.iterdir())
