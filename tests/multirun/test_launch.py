"""What is missing of a sweep is started, and how it went is said."""

from pathlib import Path

import pytest
import sweep_work

from gmmcnn.config import LocalLauncher
from gmmcnn.errors import ConfigurationError
from gmmcnn.multirun import launch, local
from gmmcnn.multirun.record import Sweep


@pytest.fixture
def _in_this_process(monkeypatch):
    """Do the jobs one after the other, here."""

    def run(sweep: Sweep, names: list[str], settings: LocalLauncher, work, advance) -> None:
        for name in names:
            work(str(sweep.folder), name)
            advance()

    monkeypatch.setattr(local, "run", run)


@pytest.mark.usefixtures("_in_this_process")
def test_the_same_again_does_what_is_missing(tmp_path, capsys):
    sweep = launch.opened(str(tmp_path / "sweep"), [["seed=0"], ["seed=1", "exit_code=1"], ["seed=2"]])
    assert launch.launch(sweep, LocalLauncher(), sweep_work.do) == 1
    said = capsys.readouterr().out
    assert "3 of 3 jobs to do" in said
    assert "exit_code-1_seed-1: failed: as it was told" in said or "seed-1_exit_code-1: failed: as it was told" in said
    assert "3 jobs: 2 done, 1 failed" in said
    again = launch.opened(str(tmp_path / "sweep"), [])
    assert again == sweep
    assert launch.launch(again, LocalLauncher(), sweep_work.do) == 1
    assert "1 of 3 jobs to do; 2 done and 0 under way are left alone" in capsys.readouterr().out
    assert sorted(sweep_work.ran(sweep).values()) == [1, 1, 2]


@pytest.mark.usefixtures("_in_this_process")
def test_with_more_seeds_these_are_done_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sweep = launch.opened(None, [["seed=0"], ["seed=1"]])
    assert sweep.folder.parent == Path("multirun")
    assert launch.launch(sweep, LocalLauncher(), sweep_work.do) == 0
    more = launch.opened(str(sweep.folder), [["seed=1"], ["seed=2"]])
    assert launch.launch(more, LocalLauncher(), sweep_work.do) == 0
    assert sweep_work.ran(more) == {"seed-0": 1, "seed-1": 1, "seed-2": 1}


def test_a_folder_of_no_sweep_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"sweep\.json: missing; expected the record of a sweep"):
        launch.opened(str(tmp_path), [[]])


def test_commands_to_go_on_with_are_quoted(tmp_path):
    sweep = Sweep(tmp_path / "a b=c", ())
    assert launch.look(sweep) == f"gmmcnn task=aggregate \"sweep='{sweep.folder}'\""
    assert launch.again(sweep) == f"gmmcnn -m \"sweep='{sweep.folder}'\""
