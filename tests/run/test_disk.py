"""A disk that is full or fails is told in one line, with the file and a way on; really full ones, where root mounts."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gmmcnn import files
from gmmcnn.errors import ConfigurationError, DiskError, StoreError
from gmmcnn.run import disk

GO_ON = "and go on where it stopped with: gmmcnn task=run run="


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "no space is left on its disk ("),
        (errno.EDQUOT, "the quota on its disk is used up ("),
        (errno.EIO, "the disk failed (input/output error); copy the folder to another disk"),
        (errno.EROFS, "its disk is mounted read-only; mend that, or choose another folder"),
        (errno.ESTALE, "the network file system has lost it (stale file handle); mount it again"),
        (errno.EACCES, "permission is denied"),
    ],
)
def test_each_kind_names_the_file_and_how_to_go_on(tmp_path, number, said):
    told = disk.told(OSError(number, os.strerror(number), "some/file.npz"), tmp_path, "run")
    assert isinstance(told, DiskError)
    assert str(told).startswith(f"some/file.npz: {said}")
    assert GO_ON in str(told)
    assert "\n" not in str(told)


def test_it_is_found_behind_whatever_other_libraries_make_of_it(tmp_path):
    of_torch = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 2432 vs 2384")
    of_torch.__context__ = OSError(errno.ENOSPC, "No space left on device")
    assert str(disk.told(of_torch, tmp_path, "run")).startswith(f"{tmp_path}: no space is left")
    with pytest.raises(OSError, match="No space left") as raised, files.naming(tmp_path / "maps.zarr"):
        raise RuntimeError("c/0: an IO error: No space left on device (os error 28)")
    assert str(disk.told(raised.value, tmp_path, "run")).startswith(f"{tmp_path / 'maps.zarr'}: no space is left")


def test_other_errors_and_those_that_are_told_already_stay_what_they_are(tmp_path):
    assert disk.told(ValueError("a"), tmp_path, "run") is None
    assert disk.told(FileNotFoundError(errno.ENOENT, "No such file", "x"), tmp_path, "run") is None
    ours = StoreError("x: cannot be read")
    ours.__cause__ = PermissionError(errno.EACCES, "Permission denied", "x")
    assert disk.told(ours, tmp_path, "run") is None


def test_too_little_room_is_refused_before_work_starts(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    disk.require_room(tmp_path / "new", {"weights": 1.0})
    with pytest.raises(
        ConfigurationError, match=r"run: .* are free on its disk, and about .* are needed at least \(weights"
    ):
        disk.require_room(tmp_path / "new" / "run", {"weights": 2.0 * free, "fits": 1e6})


@pytest.fixture
def small_disk(tmp_path):
    """A disk of so many bytes."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = []

    def mounting(n_bytes: int) -> Path:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={n_bytes}", "none", str(place)], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip("mounting needs root")
        mounted.append(place)
        return place

    yield mounting
    for place in mounted:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("kib", [90, 400, 1100])
def test_a_full_disk_ends_a_run_in_one_line_and_a_larger_one_goes_on_bit_by_bit(small_disk, tmp_path, kib):
    place = small_disk(kib << 10)
    settings = ["train.epochs=2", "data.train_samples=100", "probe.samples=50", "probe.batches=2", "gmm.k_max=4",
                "gmm.n_init=1", "gmm.repeats=2", "prune.controls=1", "engine.threads=1"]  # fmt: skip

    def gmmcnn(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-W", "error", "-m", "gmmcnn", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    done = gmmcnn(*settings, f"run={place / 'run'}")
    assert done.returncode in (1, 2)
    assert done.stderr.count("\n") == 1, done.stderr
    if done.returncode == 2:  # foreseen
        assert "are free on its disk" in done.stderr
        return
    assert "no space is left on its disk" in done.stderr
    assert f"{place}/run/" in done.stderr
    record = json.loads((place / "run" / "run.json").read_text())
    assert record["status"] in ("failed", "running")
    subprocess.run(["mount", "-o", "remount,size=64m", str(place)], check=True)
    again = gmmcnn(f"run={place / 'run'}")
    assert again.returncode == 0, again.stderr
    whole = gmmcnn(*settings, "run=whole")
    assert whole.returncode == 0, whole.stderr
    for name in ("filters.csv", "outliers.csv", "samples.csv", "metrics.csv", "masking.csv"):
        one, other = place / "run" / name, tmp_path / "whole" / name
        assert one.exists() == other.exists()
        assert not one.exists() or one.read_bytes() == other.read_bytes()
