"""Tasks in a run folder that is not as the settings given now would have made it, or not as it was left."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf

from gmmcnn import config
from gmmcnn.errors import (
    CaptureError,
    ConfigurationError,
    EngineError,
    GmmcnnError,
    StoreError,
    StoreNotFoundError,
    TrainingError,
)
from gmmcnn.featuremaps import ActivationStore
from gmmcnn.pruning import masks as pruning
from gmmcnn.tasks import execute

TINY = config.Settings(
    data=config.Data(train_samples=200),
    train=config.Train(epochs=2),
    probe=config.Probe(samples=50, batches=2),
    gmm=config.Gmm(k_max=4, n_init=1, repeats=1),
    prune=config.Prune(controls=2),
    engine=config.Engine(threads=1),
)


def do(task: str, folder: Path, **changes: object) -> None:
    """Carry out a task with the tiny settings and changes to them, ``extract__tap="branch"`` as on the command line."""
    settings = OmegaConf.structured(TINY)
    for key, value in {"task": task, **changes}.items():
        OmegaConf.update(settings, key.replace("__", "."), value)
    execute(OmegaConf.to_object(settings), folder)


@pytest.fixture(scope="module")
def _finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tasks") / "run"
    do("run", folder)
    return folder


@pytest.fixture
def finished(_finished: Path, tmp_path: Path) -> Path:
    """Folder of a finished run, to be spoilt."""
    return shutil.copytree(_finished, tmp_path / "run")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Feature maps from elsewhere: 250 samples of 3 filters."""
    path = tmp_path / "maps.npy"
    np.save(path, np.random.default_rng(0).exponential(size=(250, 3, 4, 4)).astype(np.float32))
    return path


def last(folder: Path) -> Path:
    """What is found with the network as it is now."""
    return folder / "activations" / "epoch-0002"


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# --------------------------------------------------------------------------------------------------- other settings now


@pytest.mark.parametrize("task", ["fit", "screen", "prune", "report"])
@pytest.mark.parametrize(
    ("changes", "others", "made_with"),
    [
        ({"data__train_samples": 300}, "probe samples", "data.train_samples=200"),
        ({"data__label_noise": 0.5}, "probe samples", "data.label_noise=0.0"),
        ({"probe__plant": 4}, "probe samples", "probe.plant=0"),
        ({"probe__batches": 1}, "probe samples", "probe.batches=2"),
        ({"extract__tap": "pre_activation"}, "settings", "extract.tap=auto"),
        ({"extract__layers": ["features.conv1"]}, "settings", "extract.layers=null"),
    ],
    ids=str,
)
def test_settings_of_other_maps_are_refused(finished, task, changes, others, made_with):
    before = content(finished)
    message = rf"epoch-000.: holds feature maps of other {others} \(made with {made_with}\); give .* task=extract run="
    with pytest.raises(ConfigurationError, match=message):
        do(task, finished, **changes)
    after = content(finished)
    assert json.loads(after.pop("run.json"))["status"] == "failed"
    assert after == {name: before[name] for name in before if name != "run.json"}


@pytest.mark.parametrize("task", ["screen", "prune", "report"])
def test_settings_of_another_training_are_refused(finished, task):
    with pytest.raises(
        TrainingError, match=r"was trained with train\.learning_rate=0\.001; expected .*=0\.1; give what"
    ):
        do(task, finished, train__learning_rate=0.1)


def test_maps_of_other_weights_are_refused(finished, tmp_path):
    weights = finished / "checkpoints" / "epoch-0001.pt"
    do("extract", tmp_path / "given", model__checkpoint=str(weights))
    do("fit", tmp_path / "given", model__checkpoint=str(weights))
    with pytest.raises(ConfigurationError, match=r"holds feature maps of other weights \(made with model\.checkpoint="):
        do("screen", tmp_path / "given", model__checkpoint=str(finished / "checkpoints" / "epoch-0002.pt"))


def test_extracted_and_fitted_again_other_settings_are_the_folder_s_own(finished):
    for task in ("extract", "fit", "screen", "prune", "report"):
        do(task, finished, probe__plant=4)
    assert "4 noise images planted" in (finished / "report.html").read_text()
    with pytest.raises(ConfigurationError, match=r"made with probe\.plant=4"):
        do("report", finished)


# -------------------------------------------------------------------------------------- nothing is removed for nothing


@pytest.mark.parametrize("changes", [{"extract__layers": ["conv9"]}, {"extract__source": "typo.npy"}], ids=str)
def test_maps_that_cannot_be_made_cost_no_fits(finished, changes):
    before = content(finished / "activations")
    with pytest.raises((CaptureError, StoreNotFoundError), match=r"conv9|typo\.npy"):
        do("extract", finished, **changes)
    assert content(finished / "activations") == before


def test_a_source_that_is_gone_costs_no_fits(source, tmp_path):
    here = {"extract__source": str(source), "probe__samples": 125}
    do("run", tmp_path / "run", **here)
    before = content(tmp_path / "run" / "activations")
    for gone in (source, tmp_path / "typo.npy"):
        source.unlink(missing_ok=True)
        other = here | {"extract__source": str(gone), "gmm__k_max": 3}
        do("extract", tmp_path / "run", **here)
        do("screen", tmp_path / "run", **here)
        if gone != source:
            with pytest.raises(StoreNotFoundError, match=r"typo\.npy"):
                do("extract", tmp_path / "run", **other)
    assert content(tmp_path / "run" / "activations") == before


# ------------------------------------------------------------------------------------------------ imported feature maps


def test_imported_samples_that_do_not_divide(source, tmp_path):
    with pytest.raises(
        ConfigurationError, match=r"probe\.samples=100: .*maps\.npy has 250 samples.* probe\.samples=250 for one batch"
    ):
        do("extract", tmp_path / "run", extract__source=str(source), probe__samples=100)
    assert not (tmp_path / "run" / "activations").exists()


@pytest.mark.parametrize(("samples", "batches"), [(50, 5), (250, 1), (300, 1)])
def test_imported_samples_in_batches(source, tmp_path, samples, batches):
    do("run", tmp_path / "run", extract__source=str(source), probe__samples=samples)
    assert f"{batches} batch" in (tmp_path / "run" / "report.html").read_text()
    told = pd.read_csv(tmp_path / "run" / "filters.csv")[["tap", "kind", "map_shape"]]
    assert told.drop_duplicates().to_numpy().tolist() == [["imported", "imported", "4x4"]]


# ------------------------------------------------------------------------------------------------------- damaged stores


def damage_shard(store: Path) -> str:
    shard = store / "maps" / "001.features.conv2" / "c.0.1.0.0"
    shard.write_bytes(bytes(shard.stat().st_size))
    return "layer 'features.conv2', block 1 (maps/001.features.conv2/c.0.1.0.0): corrupted, its checksum differs"


def lose_shard(store: Path) -> str:
    (store / "maps" / "000.features.conv1" / "c.0.0.0.0").unlink()
    return "layer 'features.conv1', block 0 (maps/000.features.conv1/c.0.0.0.0): missing"


def damage_description(store: Path) -> str:
    os.truncate(store / "maps" / "002.features.conv3" / "zarr.json", 100)
    return "layer 'features.conv3' (maps/002.features.conv3/zarr.json): damaged"


def damage_header(store: Path) -> str:
    os.truncate(store / "maps" / "zarr.json", 100)
    return "there is no store of feature maps"


@pytest.mark.parametrize("damage", [damage_shard, lose_shard, damage_description, damage_header])
def test_a_damaged_store_is_found_and_made_again(finished, capsys, damage):
    before = content(finished / "activations")
    do("verify", finished)
    assert f"{last(finished) / 'maps.zarr'}: complete" in capsys.readouterr().out
    what = damage(last(finished) / "maps.zarr")
    with pytest.raises(
        StoreError, match=r"1 of \d+ parts not as recorded: see above; made again by: gmmcnn task=repair"
    ):
        do("verify", finished)
    line = next(line for line in capsys.readouterr().out.splitlines() if "maps.zarr" in line)
    assert f"{last(finished) / 'maps.zarr'}: " in line
    assert what in line
    do("repair", finished)
    do("verify", finished)
    assert content(finished / "activations") == before


def test_a_damaged_store_of_imported_maps_is_made_again(source, tmp_path, capsys):
    here = {"extract__source": str(source), "probe__samples": 125}
    do("extract", tmp_path / "run", **here)
    store = tmp_path / "run" / "activations" / "imported" / "maps.zarr"
    shard = next(store.rglob("c.*"))
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(
        StoreError, match=r"corrupted .*; gmmcnn task=verify run=FOLDER names what is damaged, task=extr"
    ):
        do("fit", tmp_path / "run", **here)
    do("extract", tmp_path / "run", **here)
    assert ActivationStore.open(store).verify() == []
    do("fit", tmp_path / "run", **here)


def test_nothing_to_verify(tmp_path):
    with pytest.raises(
        StoreNotFoundError, match=r"holds neither weights nor feature maps; made by: gmmcnn task=extract"
    ):
        do("verify", tmp_path / "run")


# -------------------------------------------------------------------------------------------------------- damaged files


@pytest.mark.parametrize("text", [None, "", '{"identity": {', '{"identity": "of an earlier version"}'])
def test_without_a_record_of_the_maps_nothing_is_taken_for_granted(finished, text):
    before = content(finished / "activations")
    record = last(finished) / "taps.json"
    record.unlink()
    if text is not None:
        record.write_text(text)
    for task in ("fit", "screen", "report", "prune"):
        with pytest.raises(
            StoreNotFoundError, match=r"taps\.json: missing, damaged or of .*: gmmcnn task=extract run="
        ):
            do(task, finished)
    do("extract", finished)
    assert not (last(finished) / "fits").exists()  # of which maps they were, nobody can tell
    do("fit", finished)
    assert content(finished / "activations") == before


@pytest.mark.parametrize(
    ("file", "tasks", "remedy"),
    [
        ("checkpoints/metrics.csv", ["screen", "extract"], "write it again: gmmcnn task=train run="),
        ("metrics.csv", ["report"], "write it: gmmcnn task=screen run="),
        ("masking.csv", ["report"], "write it: gmmcnn task=prune run="),
    ],
)
@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", b"\xff\xfe\x00"], ids=repr)
def test_a_damaged_table_is_named_with_the_task_that_writes_it(finished, file, tasks, remedy, text):
    (finished / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    for task in tasks:
        with pytest.raises(StoreError, match=rf"{file}: damaged \(.+\); {remedy}"):
            do(task, finished)
    do(remedy.split("task=")[1].split()[0], finished)
    do(tasks[0], finished)


def test_a_page_before_the_tables(finished):
    (finished / "metrics.csv").unlink()
    with pytest.raises(StoreError, match=r"metrics\.csv: missing; write it: gmmcnn task=screen run="):
        do("report", finished)


# ----------------------------------------------------------------------------------------------------------- the record


def test_the_page_shows_masking_of_the_anomaly_filters_it_names_alone(finished):
    assert pruning.load_mask(finished / "mask.json")
    assert "Masking" in (finished / "report.html").read_text()
    do("screen", finished, screen__ch_ratio=50.0)
    do("report", finished, screen__ch_ratio=50.0)
    page = (finished / "report.html").read_text()
    assert "None of 112 filters is anomalous" in page
    assert "Masking " not in page


def test_seconds_of_every_stage_stay_when_later_tasks_run(finished):
    record = finished / "run.json"
    before = json.loads(record.read_text())["seconds"]
    assert set(before) == {"train", "extract", "fit", "prune", "total"}
    do("report", finished)
    after = json.loads(record.read_text())["seconds"]
    assert after | {"total": 0} == before | {"total": 0}
    assert after["total"] != before["total"]
    do("prune", finished)
    again = json.loads(record.read_text())["seconds"]
    assert again["prune"] > before["prune"]
    assert again["train"] == before["train"]
    record.write_text("{")
    with pytest.raises(GmmcnnError):
        do("screen", finished, probe__plant=1)
    assert set(json.loads(record.read_text())["seconds"]) == {"total"}
    assert len(pd.read_csv(finished / "filters.csv")) == 224


def test_removing_writes_the_network_without_the_masked_filters(finished):
    do("prune", finished, prune__controls=1, prune__method="remove")
    mask = json.loads((finished / "mask.json").read_text())["layers"]
    n_filters = sum(map(len, mask.values()))
    assert n_filters
    plan = torch.load(finished / "pruned.pt", weights_only=True)["plan"]
    assert {**plan["removed"], **plan["silenced"]} == mask
    sizes = pd.read_csv(finished / "pruning.csv").set_index("network")
    assert sizes["filters"]["before"] - sizes["filters"]["after"] == sum(map(len, plan["removed"].values()))
    masking = pd.read_csv(finished / "masking.csv").set_index("mask")
    torch.export.load(finished / "pruned.pt2")
    assert sizes["validation_accuracy"]["after"] == pytest.approx(masking["validation_accuracy"]["anomalous"])


def test_without_torch_pruning_nothing_is_begun(finished, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    before = content(finished)
    with pytest.raises(EngineError, match=r"pip install 'gmmcnn\[prune\]'"):
        do("prune", finished, prune__method="remove")
    assert {name: text for name, text in content(finished).items() if name in before and name != "run.json"} == {
        name: text for name, text in before.items() if name != "run.json"
    }
