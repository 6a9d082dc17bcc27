"""What a run would do, said before it does it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from gmmcnn import config
from gmmcnn.errors import ConfigurationError, GmmcnnError, ModelError
from gmmcnn.featuremaps.taps import Skipped
from gmmcnn.run import preview
from gmmcnn.run.folder import Run
from gmmcnn.tasks import execute


def settings(**changes) -> config.Settings:
    small = {"data": config.Data(train_samples=150), "probe": config.Probe(samples=50), "gmm": config.Gmm(k_max=3)}
    return config.Settings(**small | {"dry_run": True} | changes)


def test_every_tap_is_listed_with_what_it_takes_and_nothing_is_written(tmp_path, capsys):
    execute(settings(), tmp_path)
    said = capsys.readouterr().out
    for layer, filters, size in (("conv1", 16, "8 × 8"), ("conv2", 32, "4 × 4"), ("conv3", 64, "2 × 2")):
        (line,) = [line for line in said.splitlines() if f"features.{layer}" in line]
        mib = 150 * filters * int(size[0]) ** 2 * 4 / 2**20
        assert all(part in line for part in ("Conv2d", f"{filters}", size, f"{mib:.1f}"))
    assert "3 probe batches of N = 50" in said
    assert "A checkpoint: 112 filters, 1.0 MiB of maps before compression" in said
    assert "10 checkpoints and the best epoch's" in said
    assert "30 epochs of training" in said
    assert list(tmp_path.iterdir()) == []


def test_what_is_left_out_is_told_with_the_reason(tmp_path, capsys, monkeypatch):
    find = preview.taps_of
    left_out = (Skipped("head", "its maps go nowhere"),)
    monkeypatch.setattr(preview, "taps_of", lambda *given: replace(find(*given), skipped=left_out))
    execute(settings(task="extract"), tmp_path)
    said = capsys.readouterr().out
    assert "Left out: head: its maps go nowhere" in said
    assert "10 checkpoints. Nothing was done" in said


def test_half_precision_takes_half_the_bytes():
    job = Run(settings(), None)
    probe = job.probe()
    taps = preview.taps_of(job.network(), probe, job.settings.extract)
    whole, half = (preview._bytes(taps.analysed[0], probe, dtype) for dtype in ("float32", "float16"))
    assert whole == 2 * half == 150 * 16 * 64 * 4


def test_imported_maps_are_counted(tmp_path, capsys):
    np.save(tmp_path / "maps.npy", np.zeros((60, 2, 3, 3), np.float32))
    execute(settings(extract=config.Extract(source=str(tmp_path / "maps.npy"))), tmp_path)
    assert "maps of 60 samples" in capsys.readouterr().out


def test_other_tasks_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="task=run or task=extract would do, not task=screen"):
        execute(settings(task="screen"), tmp_path)


def test_a_run_says_what_it_is_about_to_do(tmp_path):
    said = preview.intent(Run(settings(), tmp_path))
    assert said.startswith("simple_cnn on digits: 30 epochs on 150 samples, then every filter of 10 checkpoints and")
    assert said.endswith(f" the best epoch's; results: {tmp_path}")


@pytest.mark.parametrize("content", [None, {"other.weight": torch.ones(1)}])
def test_weights_that_a_run_would_refuse_are_refused(tmp_path, content):
    path = tmp_path / "net.pt"
    if content:
        torch.save(content, path)
    with pytest.raises(ModelError, match="does not fit the model" if content else "no such checkpoint"):
        execute(settings(task="extract", model=config.Model(checkpoint=str(path))), tmp_path / "run")


def test_a_network_without_convolutions_is_refused_as_a_run_would(tmp_path):
    linear = config.Model("torch.nn:Linear", kwargs={"in_features": 8, "out_features": 10})
    for asked in (settings(model=linear), settings(model=linear, dry_run=False, task="doctor", estimate=True)):
        with pytest.raises(GmmcnnError, match=r"convolution|model"):
            execute(asked, tmp_path)
