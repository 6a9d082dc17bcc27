"""Work on numbered items spread over threads in small blocks."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

from threadpoolctl import ThreadpoolController

BLOCKS_PER_THREAD = 64
"""So many that a thread which ends last ends little after the others."""


def for_blocks(
    function: Callable[[int, int], None], n_items: int, threads: int | None, *, largest_block: int = 64
) -> None:
    """Call ``function(first, last)`` on blocks that cover the items, each thread taking the next block when it is done.

    Parameters
    ----------
    function : callable
        Works on items first … last - 1 of ``n_items``, and lets other threads run while it computes.
    n_items : int
    threads : int or None
        None takes one for each core this process may use.
    largest_block : int
        Items in a block, at most: what an interrupt has to wait for.

    Raises
    ------
    Exception
        Whatever ``function`` raises. After that, as after Ctrl-C, blocks not yet begun are left undone.
    """
    threads = threads or available_cores()
    block = max(1, min(largest_block, n_items // (threads * BLOCKS_PER_THREAD) if threads > 1 else n_items))
    blocks = [(first, min(first + block, n_items)) for first in range(0, n_items, block)]
    if threads == 1 or len(blocks) < 2:
        for first, last in blocks:
            function(first, last)
        return
    with ThreadPoolExecutor(threads) as pool:
        try:
            for done in [pool.submit(function, *bounds) for bounds in blocks]:
                done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def available_cores() -> int:
    """Cores this process may use, which a scheduler may have made fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def _blas_libraries() -> ThreadpoolController:
    """Those of NumPy and SciPy, which whoever asks has loaded; to find them takes milliseconds."""
    return ThreadpoolController()


def one_blas_thread() -> Any:
    """Context of one BLAS thread: the threads are ours, and no result depends on how BLAS splits its work."""
    return _blas_libraries().limit(limits=1, user_api="blas")
