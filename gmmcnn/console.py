"""What is said to the person at the terminal."""

from functools import cache

from rich.console import Console
from rich.table import Table

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
