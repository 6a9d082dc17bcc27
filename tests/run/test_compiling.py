"""The CPU engine is compiled once for a machine, its parts in processes of their own, and known to be."""

import os
import subprocess
import sys

import pytest

from gmmcnn.errors import EngineError
from gmmcnn.hardware import compiled
from gmmcnn.run import compiling


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """What was compiled, by processes that do nothing, into a cache of its own."""
    monkeypatch.setattr(compiled, "cache_folder", lambda: tmp_path)
    parts = []

    def pretend(due):
        parts.append(due)
        return subprocess.CompletedProcess([], 0, "", "")

    monkeypatch.setattr(compiling, "_in_a_process", pretend)
    return parts


def test_each_part_is_compiled_once(asked):
    assert compiling.compile_ahead([2, 3]) == 6
    assert sorted(asked) == [(part, d) for part in sorted(compiling.PARTS) for d in (2, 3)]
    assert compiling.compile_ahead([2, 3]) == 0
    assert compiling.compile_ahead([3, 4]) == 3
    assert len(asked) == 9


def test_other_sources_or_another_processor_are_compiled_for_anew(asked, monkeypatch):
    compiling.compile_ahead([2])
    monkeypatch.setattr(compiled, "stamp", lambda: ["another"])
    assert compiling.compile_ahead([2]) == 3


def test_where_nothing_can_be_kept_everything_is_compiled_and_no_mark_is_made(asked, monkeypatch, tmp_path):
    monkeypatch.setattr(compiled, "cache_folder", lambda: None)
    assert compiling.compile_ahead([2]) == 3
    assert not list(tmp_path.iterdir())


def test_a_part_that_cannot_be_compiled_is_named_with_the_reason(asked, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "Traceback\nImportError: no llvmlite")
    monkeypatch.setattr(compiling, "_in_a_process", lambda due: failed)
    with pytest.raises(EngineError, match=r"sweep for pca\.dims=2 cannot be compiled here: ImportError: no llvmlite"):
        compiling.compile_ahead([2])


@pytest.mark.slow
def test_a_cache_of_its_own_is_filled_and_used(tmp_path):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    program = (
        "import time; from gmmcnn.run import compiling; print(compiling.compile_ahead([1]));"
        "start = time.process_time(); [compiling.compile_part(part, 1) for part in compiling.PARTS];"
        "print(time.process_time() - start)"
    )
    command = [sys.executable, "-W", "error", "-c", program]
    said = [
        subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.split()
        for _ in range(2)
    ]
    assert [int(compiled_now) for compiled_now, _ in said] == [3, 0]
    assert all(float(seconds) < 3 for _, seconds in said)  # loaded; compiling takes three times as long
    assert list(tmp_path.rglob("*.nbc"))
