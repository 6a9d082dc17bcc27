"""Progress with rate and time left on standard error; silent where that is no terminal."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text


class Advance(Protocol):
    """What a long piece of work calls after each part: ``advance(n)`` says that ``n`` more units are done."""

    def __call__(self, n: int = 1, /) -> None:
        """Count ``n`` more."""
        ...


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
        To be called with the number of units just finished. It does nothing where standard error is no terminal.
    """
    if not sys.stderr.isatty():
        yield lambda n=1, /: None
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _RateColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total, unit=unit)
        yield lambda n=1, /: bar.advance(task, n)


_console = Console(soft_wrap=True, highlight=False)


def say(text: str | Table) -> None:
    """Write a line or a table."""
    _console.print(text, markup=False)


@cache
def note(text: str) -> None:
    """Write a line to standard error, once; nothing where that is no terminal."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    if console.is_terminal:
        console.print(text, markup=False)
