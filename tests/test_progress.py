"""What is shown while work is going on: a bar on a terminal, nothing elsewhere, lines as they are."""

import io
import sys
import threading
import warnings
from collections.abc import Iterator

import pytest
from rich.console import Console
from rich.progress import Progress

from gmmcnn import progress
from gmmcnn.errors import DataWarning
from gmmcnn.progress import note, say


class Terminal(io.StringIO):
    """Standard error of somebody who looks."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _nothing_noted_before() -> Iterator[None]:
    note.cache_clear()
    yield
    note.cache_clear()


def test_nothing_is_shown_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress("fitting conv1", 3, "filters") as advance:
        advance()
        advance(2)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar_that_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, counted = Terminal(), []
    monkeypatch.setattr(sys, "stderr", terminal)
    advance_bar = Progress.advance
    monkeypatch.setattr(Progress, "advance", lambda bar, task, n: counted.append(n) or advance_bar(bar, task, n))
    with progress.progress("fitting conv1", 5, "filters") as advance:
        advance()
        advance(4)
    assert counted == [1, 4]
    assert "fitting conv1" in terminal.getvalue()
    assert "5/5" in terminal.getvalue()


def test_the_bar_goes_when_the_work_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with pytest.raises(ZeroDivisionError), progress.progress("dividing", 1, "numbers"):
        raise ZeroDivisionError
    with progress.progress("again", 1, "numbers") as advance:  # rich allows one bar at a time
        advance()


def test_the_rate_is_in_the_unit_of_the_work() -> None:
    bar = Progress()
    bar.add_task("", total=10, unit="filters")
    [task] = bar.tasks
    column = progress._RateColumn()
    assert column.render(task).plain == ""
    task.finished_speed = 1234.5
    assert column.render(task).plain == "1,234 filters/s"


def test_a_line_is_written_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(progress, "_console", Console(file=written, soft_wrap=True, highlight=False, width=20))
    line = "[bold]conv1[/]: 3 of 128 filters, λ·K_max/N = 0.25, in /a/long/path/that/does/not/wrap"
    say(line)
    assert written.getvalue() == line + "\n"


def test_a_note_is_written_once_and_to_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    nobody, terminal = io.StringIO(), Terminal()
    monkeypatch.setattr(sys, "stderr", nobody)
    note("compiling for the first time")
    assert nobody.getvalue() == ""
    note.cache_clear()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    note("compiling for the first time")
    note("compiling for the first time")
    note("once more")
    assert terminal.getvalue().count("compiling") == 1
    assert "once more" in terminal.getvalue()


def test_hushed_it_says_nothing_and_still_counts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(progress, "_hushed", threading.Event())
    monkeypatch.setattr(sys, "stderr", Terminal())
    progress.hush()
    say("a line")
    note("a hint")
    with progress.progress("fitting conv1", 3, "filters") as advance:
        advance()
    assert capsys.readouterr().out == ""
    assert sys.stderr.getvalue() == ""


def test_warnings_of_the_package_are_one_line_and_those_of_others_as_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    usual = warnings.formatwarning(UserWarning("theirs"), UserWarning, "a.py", 3, "a = 1")
    progress.warn_in_one_line()
    assert warnings.formatwarning(DataWarning("ours"), DataWarning, "a.py", 3, "a = 1") == "gmmcnn: ours\n"
    assert warnings.formatwarning(UserWarning("theirs"), UserWarning, "a.py", 3, "a = 1") == usual
