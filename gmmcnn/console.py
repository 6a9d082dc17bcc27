"""What is said to the person at the terminal, on standard output."""

from rich.console import Console
from rich.table import Table

_console = Console(soft_wrap=True, highlight=False)


def say(text: str | Table) -> None:
    """Write a line or a table."""
    _console.print(text, markup=False)
