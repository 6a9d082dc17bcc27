"""The page of a run whose fits are made by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from handmade_fits import ONE_OF_EACH, N, fits_of

from gmmcnn import config
from gmmcnn.analysis import Analysis
from gmmcnn.errors import StoreError
from gmmcnn.files import write_table
from gmmcnn.pruning.masks import save_mask
from gmmcnn.run import page
from gmmcnn.run.folder import Checkpoint, Run
from gmmcnn.run.stages import Analysed

METRICS = pd.DataFrame(
    {"epoch": [1, 2], "train_loss": 1.0, "train_accuracy": 0.5, "validation_loss": 1.0, "validation_accuracy": 0.25}
).assign(anomalous_filters=[1.0, 3.0], flagged_per_batch=[1.0, 3.0])
MASKING = pd.DataFrame({"mask": ["none", "anomalous", "random"], "control": 0, "n_filters": [0, 1, 1]}).assign(
    train_accuracy=[0.75, 0.5, 0.25], validation_accuracy=[0.5, 0.375, 0.25], train_loss=1.0, validation_loss=1.0
)


@pytest.fixture
def found() -> Analysed:
    known = pd.DataFrame({"batch": 0, "label": np.arange(N) % 2})
    analysis = Analysis(fits_of(ONE_OF_EACH), known, np.zeros((N, 4, 4), np.uint8), config.Screen(), name="network X")
    return Analysed(Checkpoint("epoch-0002", 2, Path("2.pt"), Path("c")), analysis, ("cat", "dog"))


@pytest.fixture
def job(tmp_path: Path) -> Run:
    write_table(tmp_path / "metrics.csv", METRICS)
    return Run(config.Settings(train=config.Train(epochs=2)), tmp_path)


def written(job: Run, found: Analysed) -> str:
    page.write(job, [found])
    return (job.folder / "report.html").read_text(encoding="utf-8")


def test_the_page_shows_analysis_settings_and_curve(job, found, capsys):
    text = written(job, found)
    assert "network X" in text
    assert "2 epochs of" in text
    assert "gmmcnn task=screen run=" in text
    for fact in ("Written by", "Settings changed", "train.epochs=2", "Machine", "Python 3."):
        assert fact in text
    assert "dog" in text
    assert f"Report: {job.folder / 'report.html'}" in " ".join(capsys.readouterr().out.split())


def test_the_course_is_counted_by_the_thresholds_in_force(job, found):
    """Those of metrics.csv may be others."""
    earlier = replace(found.analysis, settings=config.Screen(ch_ratio=1e6))
    before = replace(found, checkpoint=Checkpoint("epoch-0001", 1, Path("1.pt"), Path("c")), analysis=earlier)
    page.write(job, [before, found])
    text = (job.folder / "report.html").read_text(encoding="utf-8")
    assert "Filters flagged per probe batch: 0.0 after epoch 1, 1.0 after epoch 2." in text
    assert '"anomalous_filters":[0.0,1.0]' in text


def test_masking_is_shown_where_it_is_of_the_filters_that_are_anomalous_now(job, found):
    save_mask(job.folder / "mask.json", found.analysis.screening.anomalous)
    assert "Masking 1 anomaly filter" not in written(job, found)  # no table yet
    write_table(job.folder / "masking.csv", MASKING)
    assert "Masking 1 anomaly filter: training accuracy 75.0% → 50.0%" in written(job, found)
    save_mask(job.folder / "mask.json", {"conv1": [3]})
    assert "Masking 1 anomaly filter" not in written(job, found)


def test_a_damaged_table_is_told_with_the_task_that_writes_it(job, found):
    save_mask(job.folder / "mask.json", found.analysis.screening.anomalous)
    (job.folder / "masking.csv").write_text("mask\nnone\n")
    with pytest.raises(StoreError, match=r"masking\.csv: damaged .*gmmcnn task=prune run="):
        written(job, found)
    (job.folder / "metrics.csv").unlink()
    with pytest.raises(StoreError, match=r"metrics\.csv: missing; write it: gmmcnn task=screen run="):
        written(job, found)


def test_a_network_that_was_not_trained_here_has_no_training_among_its_facts(job, found):
    given = Run(replace(job.settings, model=config.Model(checkpoint="w.pt")), job.folder)
    assert "2 epochs of" in written(job, found)
    assert "2 epochs of" not in written(given, replace(found, class_names=None))


def test_a_folder_that_cannot_be_written_gets_its_page_elsewhere(job, found, tmp_path, monkeypatch, capsys):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write = page.write_text

    def refused(path: Path, text: str) -> None:
        if path.parent == job.folder:
            raise OSError(30, "Read-only file system")
        write(path, text)

    monkeypatch.setattr(page, "write_text", refused)
    page.write(job, [found])
    elsewhere = tmp_path / "here" / f"{job.folder.name}-report.html"
    assert "network X" in elsewhere.read_text(encoding="utf-8")
    said = " ".join(capsys.readouterr().out.split())
    assert "cannot be written (Read-only file system), so the page goes elsewhere" in said
    assert not (job.folder / "report.html").exists()
