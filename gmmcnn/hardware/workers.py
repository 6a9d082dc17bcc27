"""Who does the pieces of a long piece of work: other processes, if there are any.

A piece of work is a call that needs nothing but what it carries: paths, settings, ranges. Whoever does it writes what
comes of it to files, or returns what is small; done twice, it gives the same bits.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

R = TypeVar("R")


class Workers(Protocol):
    """Processes that share work."""

    def do(self, calls: Sequence[Callable[[], R]]) -> Iterator[tuple[int, R]]:
        """Have some calls made by whoever is free.

        Parameters
        ----------
        calls : sequence of callables
            That can be pickled, as :func:`functools.partial` of functions of modules.

        Yields
        ------
        number : int
            Of a call that is done; in the order in which they end.
        result : object

        Raises
        ------
        Exception
            What a call raised; the others are given up.
        """
        ...
