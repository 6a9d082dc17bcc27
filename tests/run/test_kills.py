"""Whatever file operation a run is killed at, the same command ends it with the same tables, weights and maps."""

import multiprocessing
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from killed_work import attempt

from gmmcnn.files import sha256
from gmmcnn.run import verify

KILLS = 6
"""Of a few hundred operations, drawn anew where this number is raised."""


@pytest.fixture(scope="module")
def do() -> Callable[[Path, int], tuple[int, int]]:
    """Attempt the run in a folder: exit code, and number of operations."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["killed_work"])

    def doing(folder: Path, killed_at: int = 0) -> tuple[int, int]:
        counted = context.Value("i", 0)
        process = context.Process(target=attempt, args=(str(folder), killed_at, counted))
        process.start()
        process.join()
        return process.exitcode, counted.value

    return doing


OTHERWISE = ("run.json", "report.html", "last.pt", "digests.json")
"""What says when and how it was made; the state to resume from, whose pickle is another where it was resumed itself,
and with it its digest."""


def kept(folder: Path) -> dict[str, str]:
    """Everything else that a run keeps → SHA-256."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in OTHERWISE]
    return {str(path.relative_to(folder)): sha256(path) for path in files if not path.name.startswith(".")}


@pytest.mark.slow
def test_a_run_killed_at_any_operation_goes_on_to_the_same_end(do, tmp_path):
    code, operations = do(tmp_path / "whole")
    assert code == 0
    assert operations > 100
    expected = kept(tmp_path / "whole")
    for killed_at in sorted(random.Random(0).sample(range(1, operations + 1), KILLS)):
        folder = tmp_path / f"killed-{killed_at}"
        assert do(folder, killed_at)[0] == -9
        assert do(folder)[0] == 0, killed_at
        assert kept(folder) == expected, killed_at
        left = verify.wrong(folder, verify.parts(folder))
        assert {part.kind for part in left} <= {"leftover"}, killed_at  # a draft beside what was written since
