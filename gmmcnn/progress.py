"""Progress with rate and time left on standard error, silent where that is no terminal; and steps to end between.

What a long piece of work has finished it keeps before it says ``advance()``. So this is where a process that was asked
to end does so, with nothing lost: see :func:`end_at_next_step`.
"""

import io
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text


class Advance(Protocol):
    """What a long piece of work calls after each part: ``advance(n)`` says that ``n`` more units are done."""

    def __call__(self, n: int = 1, /) -> None:
        """Count ``n`` more."""
        ...


class Ended(BaseException):
    """The work ends here because the process was asked to; like KeyboardInterrupt, no error."""


_ending = threading.Event()
_hushed = threading.Event()


def hush() -> None:
    """Show no progress and write no line from now on; errors are written elsewhere."""
    _hushed.set()


def end_at_next_step() -> None:
    """Let whatever is in progress end with :class:`Ended` as soon as the part in hand is finished and kept."""
    _ending.set()


def go_on() -> None:
    """Take :func:`end_at_next_step` back."""
    _ending.clear()


class _RateColumn(ProgressColumn):
    """Units a second, as in ``412 filters/s``."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} {task.fields['unit']}/s", style="progress.data.speed")


@contextmanager
def progress(description: str, total: int, unit: str) -> Iterator[Advance]:
    """Show a bar while the block runs.

    Parameters
    ----------
    description : str
        What is being done, as ``"fitting conv1"``.
    total : int
        Number of units of work.
    unit : str
        Their name in the plural, as ``"filters"``.

    Yields
    ------
    Advance
        To be called with the number of units just finished, and kept. It shows nothing where standard error is no
        terminal, and raises :class:`Ended` where the process was asked to end.
    """
    if _hushed.is_set() or not sys.stderr.isatty():
        yield _step(lambda n: None)
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _RateColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total, unit=unit)
        yield _step(lambda n: bar.advance(task, n))


def _step(show: Callable[[int], None]) -> Advance:
    """Count, and end if that was asked for."""

    def advance(n: int = 1, /) -> None:
        show(n)
        if _ending.is_set():
            raise Ended

    return advance


class _Console(Console):
    """One whose reader may go away, or whose file may fail: what is said then is lost, and the work goes on."""

    def on_broken_pipe(self) -> None:
        self.quiet = True  # and Python itself, which would fail at its exit, writes to nowhere
        with (
            suppress(OSError, ValueError),
            Path(os.devnull).open("wb") as nowhere,
        ):
            os.dup2(nowhere.fileno(), self.file.fileno())


_console = _Console(soft_wrap=True, highlight=False)


def say(text: str | Table) -> None:
    """Write a line or a table."""
    if not _hushed.is_set():
        try:
            _console.print(text, markup=False)
        except OSError:
            _console.on_broken_pipe()


def take_any_output() -> None:
    """Let neither a closed output nor a terminal that lacks a letter end the work."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started this process
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def warn_in_one_line() -> None:
    """Show warnings of this package as what they say, without the place in the code; those of others as usual."""
    usual = warnings.formatwarning

    def shown(message: Warning | str, category: type[Warning], *place: Any, **line: Any) -> str:
        own = category.__module__ == "gmmcnn.errors"
        return f"gmmcnn: {message}\n" if own else usual(message, category, *place, **line)

    warnings.formatwarning = shown


@cache
def note(text: str) -> None:
    """Write a line to standard error, once; nothing where that is no terminal."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    if console.is_terminal and not _hushed.is_set():
        console.print(text, markup=False)
