"""What verification looks at in a run folder, and what it leaves alone."""

import numpy as np
import pytest

from gmmcnn.errors import StoreError, StoreNotFoundError
from gmmcnn.featuremaps.store import ActivationStore
from gmmcnn.featuremaps.taps import Tap, Tapped
from gmmcnn.files import write_digests, write_record
from gmmcnn.run import verify
from gmmcnn.run.provenance import Record


@pytest.fixture
def folder(tmp_path):
    """A run folder with a store of one layer in two blocks."""
    (tmp_path / "activations" / "given").mkdir(parents=True)
    path = tmp_path / "activations" / "given" / "maps.zarr"
    store = ActivationStore.create(path, [Tap("conv", 2, 3, 3, "conv")], 4, block_samples=2)
    for block in range(2):
        store.write("conv", block, np.full((2, 2, 3, 3), 1.5))
        store.commit(block)
    identity = {"weights": "0123", "settings": {}}
    Record(identity, {}, 4, {"conv": Tapped("conv")}, ()).write(tmp_path / "activations" / "given" / "taps.json")
    return tmp_path


def test_a_folder_that_holds_nothing(tmp_path):
    with pytest.raises(StoreNotFoundError, match="holds neither weights nor feature maps"):
        verify.verify(tmp_path)


def test_a_sound_folder_is_complete_wherever_it_lies(folder, tmp_path_factory, capsys):
    elsewhere = tmp_path_factory.mktemp("archive") / "moved"
    folder.rename(elsewhere)
    verify.verify(elsewhere)
    assert capsys.readouterr().out.rstrip().endswith("maps.zarr: complete")


def test_maps_that_nothing_is_recorded_of_are_a_problem(folder, capsys):
    (folder / "activations" / "given" / "taps.json").unlink()
    with pytest.raises(StoreError, match="1 of 2 parts"):
        verify.verify(folder)
    assert "taps.json: missing, or of another version; written again by: gmmcnn task=extract" in capsys.readouterr().out


def test_damage_is_listed_part_by_part(folder, capsys):
    next(folder.rglob("c.0.1.0.0")).write_bytes(b"")
    (folder / ".filters.csv.1-2-3.partial").touch()
    with pytest.raises(StoreError, match=r"2 of 3 parts not as recorded: see above; made again by: gmmcnn task=repair"):
        verify.verify(folder)
    said = capsys.readouterr().out
    assert "0 bytes instead of" in said
    assert ".partial: left behind by an interrupted task" in said


def test_how_long_it_takes_is_said_beforehand(folder, capsys, monkeypatch):
    monkeypatch.setattr(verify, "_BYTES_PER_SECOND", 10.0)
    verify.verify(folder)
    assert "GB to be read, about" in capsys.readouterr().out


def test_leftovers_are_removed_and_nothing_else(folder):
    before = sorted(folder.rglob("*"))
    (folder / "a.partial" / "inner").mkdir(parents=True)
    (folder / "b.partial").touch()
    verify.remove_leftovers(verify.parts(folder))
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("name", ["../victim", "/{}/victim", "a/../../victim"])
def test_a_record_that_names_a_file_elsewhere_has_nothing_removed_or_read_there(folder, tmp_path_factory, name):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "victim").write_text("good")
    run = elsewhere / "run"
    folder.rename(run)
    (run / "networks").mkdir()
    named = name.format(str(elsewhere).strip("/"))
    write_digests(run / "networks", {named: "0" * 64})
    write_record(run / "run.json", {"status": "done", "task": "run", "seconds": {}, "files": {named: "0" * 64}})
    problems = verify.wrong(run, verify.parts(run))
    assert {part.path.name for part in problems} == {"digests.json", "run.json", "config.yaml"}
    verify.remove_leftovers(problems)
    assert (elsewhere / "victim").read_text() == "good"
