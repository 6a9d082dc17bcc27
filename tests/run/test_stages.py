"""A checkpoint is opened once; screening and the page need the run folder alone."""

import errno
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from gmmcnn import config, data, files, models
from gmmcnn.errors import ConfigurationError, GmmcnnError, ModelError, StoreError, StoreNotFoundError
from gmmcnn.featuremaps import find_taps
from gmmcnn.models import checkpoints, training
from gmmcnn.run import stages
from gmmcnn.run.folder import Run
from gmmcnn.tasks import execute

SMALL = config.Settings(
    data=config.Data(name="toy_run.images:Images"),
    model=config.Model(name="toy_run.network:Net"),
    train=config.Train(epochs=4),
    probe=config.Probe(samples=20, batches=3),
    gmm=config.Gmm(k_max=3, n_init=1, repeats=1),
    screen=config.Screen(ch_ratio=0.0, activation_ratio=0.0),
    prune=config.Prune(controls=2),
    engine=config.Engine(threads=1),
)
IMAGES = """
import torch
class Images(torch.utils.data.Dataset):
    classes = ["low", "high"]
    def __init__(self, train):
        generator = torch.Generator().manual_seed(int(train))
        self.images = torch.rand(60, 1, 6, 6, generator=generator)
    def __len__(self):
        return len(self.images)
    def __getitem__(self, index):
        return self.images[index], int(self.images[index].mean() > 0.5)
"""
NET = """
from torch import nn
class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
"""


@pytest.fixture(scope="module")
def _made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Counter]:
    """Package of a user, folder of a finished run, and how often things were read in it."""
    home = tmp_path_factory.mktemp("user")
    (home / "toy_run").mkdir()
    (home / "toy_run" / "images.py").write_text(IMAGES)
    (home / "toy_run" / "network.py").write_text(NET)
    sys.path.append(str(home))
    counted: Counter[str] = Counter()
    with pytest.MonkeyPatch.context() as patch:
        count(patch, counted)
        execute(replace(SMALL, task="run"), home / "run")
    return home, home / "run", counted


@pytest.fixture
def finished(_made: tuple[Path, Path, Counter], tmp_path: Path) -> Path:
    """Folder of a finished run with four checkpoints, to be spoilt."""
    return shutil.copytree(_made[1], tmp_path / "run")


@pytest.fixture
def counted(_made: tuple[Path, Path, Counter]) -> Counter:
    """How often things were read in a whole run."""
    return _made[2]


def count(patch: pytest.MonkeyPatch, counted: Counter) -> None:
    """Count weights loaded and digested, forward passes that look for layers, and files read."""

    def counting(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any, **named: Any) -> Any:
            counted[name] += 1
            return call(*arguments, **named)

        return counting

    def reading(read: Callable[..., Any]) -> Callable[..., Any]:
        def reading(path: Path, *arguments: Any, **named: Any) -> Any:
            counted[Path(path).name] += 1
            return read(path, *arguments, **named)

        return reading

    readers = {name: getattr(files, name) for name in ("read_json", "read_record")}
    patch.setattr(checkpoints, "_read", counting("weights", checkpoints._read))
    patch.setattr(pd, "read_csv", counting("tables", pd.read_csv))
    for module in [module for name, module in sys.modules.items() if name.startswith("gmmcnn.")]:
        if getattr(module, "find_taps", None) is find_taps:
            patch.setattr(module, "find_taps", counting("find_taps", find_taps))
        for name, read in readers.items():
            if getattr(module, name, None) is read:
                patch.setattr(module, name, reading(read))
        if module.__name__ in ("gmmcnn.run.stages", "gmmcnn.featuremaps.stream"):
            patch.setattr(module, "digest_tensors", counting("digests of weights", files.digest_tensors))


def test_what_a_whole_run_of_four_checkpoints_reads(counted):
    """Each checkpoint once, and the network as it is now once more, to be masked; one look at it before training."""
    assert counted["weights"] == 4 + 1
    assert counted["find_taps"] == 1 + 4
    assert counted["digests of weights"] <= 2 * 4  # the stage's, and the store's own
    assert counted["taps.json"] == 4
    assert counted["tables"] <= 5  # metrics of the training twice; counts and masking for the page


def test_screening_and_the_page_need_the_run_folder_alone(finished, monkeypatch):
    before = {name: (finished / name).read_bytes() for name in ("filters.csv", "outliers.csv", "metrics.csv")}
    execute(replace(SMALL, task="report"), finished)
    page = (finished / "report.html").read_text()
    assert "high" in page

    def gone(*_: Any, **__: Any) -> Any:
        raise AssertionError("asked for what is not in the run folder")

    for module, name in ((data, "load"), (models, "build"), (torch, "load")):
        monkeypatch.setattr(module, name, gone)
    for module in ("toy_run.images", "toy_run.network", "toy_run"):
        monkeypatch.setitem(sys.modules, module, None)
    for weights in (finished / "checkpoints").glob("*.pt"):
        weights.unlink()
    for store in finished.rglob("maps.zarr"):
        shutil.rmtree(store)
    execute(replace(SMALL, task="screen"), finished)
    execute(replace(SMALL, task="report"), finished)
    assert {name: (finished / name).read_bytes() for name in before} == before
    assert (finished / "report.html").read_text() == page
    execute(replace(SMALL, task="screen", screen=config.Screen(ch_ratio=1e9)), finished)
    assert not pd.read_csv(finished / "filters.csv")["anomalous"].any()


def test_weights_that_were_written_over_are_not_taken_for_those_of_the_maps(finished):
    weights = finished / "checkpoints"
    shutil.copy(weights / "epoch-0001.pt", weights / "epoch-0004.pt")
    with pytest.raises(ModelError, match=r"epoch-0004\.pt: damaged, its SHA-256 is not .*: gmmcnn task=repair run="):
        execute(replace(SMALL, task="screen"), finished)
    (weights / "digests.json").unlink()  # as earlier versions left the folder
    with pytest.raises(ConfigurationError, match=r"epoch-0004: holds feature maps of other weights; give what they"):
        execute(replace(SMALL, task="screen"), finished)


def test_damaged_weights_cost_no_maps_and_are_trained_again(finished, capsys):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file() and path.name != "run.json"}
    weights = finished / "checkpoints" / "epoch-0002.pt"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    (finished / ".filters.csv.0-1-2.partial").touch()
    for task in ("extract", "run", "verify"):
        with pytest.raises(GmmcnnError, match="gmmcnn task=repair run="):
            execute(replace(SMALL, task=task), finished)
    assert "epoch-0002.pt: damaged" in capsys.readouterr().out
    execute(replace(SMALL, task="repair"), finished)
    assert f"{weights}: trained again" in capsys.readouterr().out
    after = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file() and path.name != "run.json"}
    assert after == before
    execute(replace(SMALL, task="repair"), finished)
    assert "nothing to repair" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["filters.csv", "metrics.csv", "masking.csv", "mask.json", "report.html", "run.json"])
def test_damaged_tables_are_found_and_written_again(finished, name):
    path = finished / name
    before = path.read_bytes()
    path.write_bytes(before.replace(b"1", b"7", 1))
    with pytest.raises(GmmcnnError, match=r"1 of \d+ parts not as recorded"):
        execute(replace(SMALL, task="verify"), finished)
    if name in ("metrics.csv", "masking.csv", "mask.json"):
        task = "screen" if name == "metrics.csv" else "prune"
        with pytest.raises(GmmcnnError, match=rf"{name}: damaged, its SHA-256 is .*; write it: gmmcnn task={task} run"):
            execute(replace(SMALL, task="report"), finished)
    execute(replace(SMALL, task="repair"), finished)
    assert path.read_bytes() == before or name in ("run.json", "report.html")  # which say when they were written
    execute(replace(SMALL, task="verify"), finished)


def test_a_bit_in_a_key_of_the_record_of_maps_is_found(finished):
    path = finished / "activations" / "epoch-0004" / "taps.json"
    before = path.read_bytes()
    path.write_bytes(before.replace(b"probe samples", b"probe sampler", 1))
    with pytest.raises(StoreNotFoundError, match=r"taps\.json: missing, damaged or of another .*: gmmcnn task=extract"):
        execute(replace(SMALL, task="report"), finished)
    execute(replace(SMALL, task="repair"), finished)
    assert path.read_bytes() == before
    execute(replace(SMALL, task="verify"), finished)


def test_records_of_maps_that_were_exchanged_are_put_right(finished):
    records = sorted(finished.glob("activations/*/taps.json"))[:2]
    before = {path: path.read_bytes() for path in finished.rglob("*.*") if path.is_file()}
    for path, other in zip(records, reversed(records), strict=True):
        path.write_bytes(before[other])
    with pytest.raises(GmmcnnError, match="parts not as recorded"):
        execute(replace(SMALL, task="verify"), finished)
    execute(replace(SMALL, task="repair"), finished)
    after = {path: path.read_bytes() for path in finished.rglob("*.*") if path.is_file()}
    assert {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)} <= {
        finished / "run.json"
    }


def test_settings_that_change_nothing_about_the_maps_are_learnt_without_making_them_again(finished):
    """Four batches are asked for where the training set has three: the same samples."""
    more = replace(SMALL, probe=config.Probe(samples=20, batches=4))
    with pytest.raises(ConfigurationError, match=r"other probe samples \(made with probe\.batches=3\)"):
        execute(replace(more, task="screen"), finished)
    fits = {path: path.stat().st_mtime_ns for path in finished.rglob("*.npz")}
    execute(replace(more, task="extract"), finished)
    execute(replace(more, task="screen"), finished)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*.npz")} == fits


@pytest.mark.parametrize("gone", ["probe", "origin"])
def test_a_folder_of_an_earlier_version_is_completed_without_making_maps_again(finished, gone):
    """It had no table of the samples, settings of its identity without names, and none of the training."""
    before = {path: path.read_bytes() for path in finished.rglob("*.npz")}
    if gone == "probe":
        shutil.rmtree(finished / "probe")
    else:
        for path in finished.rglob("taps.json"):
            content = json.loads(path.read_text())
            del content["digest"]
            content["batch_samples"] = content.pop("n_samples")
            content["identity"]["settings"] = ["post_activation", None, "float32", 20]
            origin = {name: value for name, value in content["origin"].items() if not name.startswith("train.")}
            origin["demo.plant"] = origin.pop("probe.plant")
            path.write_text(json.dumps(content | {"origin": origin}))
    if gone == "probe":
        with pytest.raises(StoreNotFoundError, match=r"probe/\w+\.npz: missing; write it: gmmcnn task=extract run="):
            execute(replace(SMALL, task="screen"), finished)
        execute(replace(SMALL, task="extract"), finished)
    execute(replace(SMALL, task="screen"), finished)
    assert {path: path.read_bytes() for path in finished.rglob("*.npz")} == before


def test_tables_say_what_was_tapped_and_of_an_earlier_version_where(finished):
    told = ["tap", "kind", "map_shape"]
    filters = pd.read_csv(finished / "filters.csv")
    assert filters[told].drop_duplicates().to_numpy().tolist() == [["after relu (1)", "Conv2d", "4x4"]]
    for path in finished.rglob("taps.json"):
        content = json.loads(path.read_text())
        del content["digest"]
        content["analysed"] = {layer: said["tap"] for layer, said in content["analysed"].items()}
        path.write_text(json.dumps(content))
    execute(replace(SMALL, task="screen"), finished)
    again = pd.read_csv(finished / "filters.csv")
    assert again["tap"].tolist() == filters["tap"].tolist()
    assert again[["kind", "map_shape"]].isna().all(axis=None)
    pd.testing.assert_frame_equal(again.drop(columns=told), filters.drop(columns=told))


def test_a_finished_run_that_cannot_be_written_is_verified_and_reported(finished, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    content = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    replacing = files.replacing

    def read_only(path: Path) -> Any:
        if finished in Path(path).parents:
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return replacing(path)

    monkeypatch.setattr(files, "replacing", read_only)
    execute(replace(SMALL, task="verify"), finished)
    execute(replace(SMALL, task="report"), finished)
    said = capsys.readouterr().out
    assert "maps.zarr: complete" in said
    assert f"{finished}: cannot be written (Read-only file system), so nothing is recorded there" in said
    assert said.splitlines()[-1] == f"Report: {tmp_path / 'run-report.html'}"
    assert "<html" in (tmp_path / "run-report.html").read_text()[:200]
    assert {path: path.read_bytes() for path in content} == content
    with pytest.raises(ConfigurationError, match=r"run: cannot be written .*; expected a run folder that can"):
        execute(replace(SMALL, task="screen"), finished)


def test_a_query_leaves_the_network_as_it_was(finished):
    job = Run(SMALL, finished)
    initial = {name: value.clone() for name, value in job.network().state_dict().items()}
    stage = stages.open_checkpoint(job.checkpoints()[-1])
    job.network(stage.weights)
    assert all(torch.equal(value, initial[name]) for name, value in job.network().state_dict().items())
    assert training.checkpoint_path(finished / "checkpoints", 4) == stage.checkpoint.weights


def tables_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.csv")}


def test_a_run_stores_the_maps_that_it_keeps_and_no_others(finished, tmp_path, monkeypatch):
    created, create = [], stages.ActivationStore.create

    def creating(path: Path, *given: Any, **more: Any) -> Any:
        created.append(Path(path).parent.name)
        return create(path, *given, **more)

    monkeypatch.setattr(stages.ActivationStore, "create", creating)
    for keep, kept in (("none", []), ("last", ["epoch-0004"])):
        folder = tmp_path / keep
        execute(replace(SMALL, task="run", extract=config.Extract(keep_maps=keep)), folder)
        assert created == kept == [path.parent.name for path in folder.glob("activations/*/maps.zarr")]
        assert tables_of(folder) == tables_of(finished)
        assert not list(folder.glob("activations/*/fits/*.scores"))


def test_step_by_step_gives_the_tables_and_the_store_of_a_run(finished, tmp_path):
    for task in ("train", "extract", "fit", "screen", "prune"):
        execute(replace(SMALL, task=task), tmp_path / "steps")
    assert tables_of(tmp_path / "steps") == tables_of(finished)
    stores = [folder / "activations" / "epoch-0004" / "maps.zarr" for folder in (finished, tmp_path / "steps")]
    one, other = (
        {path.relative_to(store): path.read_bytes() for path in store.rglob("*") if path.is_file()} for store in stores
    )
    assert one == other


@pytest.mark.parametrize("then", [("run",), ("extract", "fit", "screen", "prune")])
@pytest.mark.parametrize("reduced", [0, 2, 5])
def test_a_run_interrupted_while_it_fits_goes_on_to_the_same_tables(finished, tmp_path, monkeypatch, reduced, then):
    from gmmcnn.filters import live

    reduce_maps, calls = live.reduce_maps, []

    def dying(*given):
        calls.append(given)
        if len(calls) > reduced:
            raise KeyboardInterrupt
        return reduce_maps(*given)

    settings = replace(SMALL, extract=config.Extract(memory=1))
    with monkeypatch.context() as patch:
        patch.setattr(live, "reduce_maps", dying)
        patch.setattr(stages.LiveMaps, "rounds", [range(n, n + 1) for n in range(3)])
        with pytest.raises(KeyboardInterrupt):
            execute(replace(settings, task="run"), tmp_path / "cut")
    execute(replace(settings, task="verify"), tmp_path / "cut")
    for task in then:
        execute(replace(settings, task=task), tmp_path / "cut")
    assert tables_of(tmp_path / "cut") == tables_of(finished)


def parts_of(folder: Path, epoch: int) -> list[Path]:
    return sorted((folder / "activations" / f"epoch-{epoch:04d}" / "fits").glob("*/*/batch-*/filter-*.npz"))


def exchanged(folder: Path) -> None:
    """The fits of two epochs in each other's place: both whole, both of something else."""
    (one,), (other,) = parts_of(folder, 1), parts_of(folder, 2)
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)


def flipped(folder: Path) -> None:
    (file,) = parts_of(folder, 2)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def cut_short(folder: Path) -> None:
    (file,) = parts_of(folder, 3)
    file.write_bytes(file.read_bytes()[:-100])


def of_another_run(folder: Path) -> None:
    (file,) = parts_of(folder, 3)
    (other,) = parts_of(folder, 4)
    shutil.copy(other, file)


@pytest.mark.parametrize("spoil", [exchanged, flipped, cut_short, of_another_run])
@pytest.mark.parametrize("tasks", [("run",), ("fit", "screen"), ("repair", "screen")])
def test_fits_that_are_damaged_or_of_something_else_are_found_and_made_again(finished, spoil, tasks, capsys):
    expected = tables_of(finished)
    spoil(finished)
    with pytest.raises(StoreError, match="not as recorded"):
        execute(replace(SMALL, task="verify"), finished)
    assert "damaged, or fits of something else" in capsys.readouterr().out
    for task in tasks:
        execute(replace(SMALL, task=task), finished)
    said = capsys.readouterr().out
    assert "fitted again" in said or "repaired" in said
    assert tables_of(finished) == expected
    execute(replace(SMALL, task="verify"), finished)
    assert [path.parent.name for path in finished.glob("activations/*/maps.zarr")] == ["epoch-0004"]


def test_fits_of_other_settings_are_asked_for_by_a_command_that_makes_them_and_lie_side_by_side(finished):
    others = replace(SMALL, gmm=replace(SMALL.gmm, k_max=4, repeats=2))
    with pytest.raises(ConfigurationError, match=r"fit first: gmmcnn task=fit run=.* gmm\.k_max=4 gmm\.repeats=2$"):
        execute(replace(others, task="screen"), finished)
    before = tables_of(finished)
    execute(replace(others, task="fit"), finished)
    execute(replace(others, task="screen"), finished)
    assert tables_of(finished)["filters.csv"] != before["filters.csv"]
    execute(replace(SMALL, task="screen"), finished)  # nothing is fitted again
    assert tables_of(finished)["filters.csv"] == before["filters.csv"]
    assert len(list((finished / "activations" / "epoch-0004" / "fits").iterdir())) == 2
