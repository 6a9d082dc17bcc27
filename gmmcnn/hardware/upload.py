"""The way of rows from host memory to a buffer on the device, through two page-locked pieces of fixed size."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gmmcnn.hardware.threads import available_cores

STAGING_BYTES = 2**28
"""Page-locked memory, in both pieces together: what is locked is taken from everybody else on the machine."""

MAX_COPIERS = 8
"""Threads that copy to page-locked memory, at most; one alone is several times slower than the way to the device."""

COPIED_ALONE = 2**21
"""Bytes up to which one thread copies a piece."""


class Upload:
    """One device buffer for blocks of rows, one after the other.

    Rows are copied piece by piece to page-locked memory and from there, on a stream of their own, to the device: while
    one piece is on its way, several threads copy the next.

    Parameters
    ----------
    cupy : module
    array : (F, …) array
        In host memory; of any strides, or mapped from a file.
    block_rows : int
        Rows that the buffer holds.
    """

    def __init__(self, cupy: Any, array: NDArray, block_rows: int) -> None:
        self._array = array
        self._buffer = cupy.empty((block_rows, *array.shape[1:]), array.dtype)
        itemsize = array.itemsize
        self._capacity = min(max(1, STAGING_BYTES // 2 // itemsize), self._buffer.size)
        self._pinned = [
            np.frombuffer(cupy.cuda.alloc_pinned_memory(self._capacity * itemsize), array.dtype, self._capacity)
            for _ in range(1 if array.size <= self._capacity else 2)
        ]
        self._copiers = ThreadPoolExecutor(min(MAX_COPIERS, available_cores()))
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._sent = [cupy.cuda.Event() for _ in self._pinned]
        self._arrived, self._released = cupy.cuda.Event(), cupy.cuda.Event()
        self._computing = cupy.cuda.get_current_stream()

    def block(self, part: slice) -> Any:
        """Rows on the device; what was launched on the computing stream before this call still sees the rows before.

        What is launched after it waits for the new ones.
        """
        self._released.record(self._computing)  # also: the pool may give out memory that earlier work still reads
        self._stream.wait_event(self._released)
        block = self._buffer[: part.stop - part.start]
        target, begin = block.reshape(-1), 0
        for i, piece in enumerate(_pieces(self._array[part], self._capacity)):
            slot = i % len(self._pinned)
            pinned, sent = self._pinned[slot][: piece.size], self._sent[slot]
            sent.synchronize()
            self._copy(pinned, piece)
            target[begin : begin + piece.size].set(pinned, stream=self._stream)
            sent.record(self._stream)
            begin += piece.size
        self._arrived.record(self._stream)
        self._computing.wait_event(self._arrived)
        return block

    def _copy(self, pinned: NDArray, piece: NDArray) -> None:
        flat = piece.flags.c_contiguous
        source, target = (piece.reshape(-1), pinned) if flat else (piece, pinned.reshape(piece.shape))
        if piece.nbytes <= COPIED_ALONE:
            np.copyto(target, source)
            return
        list(self._copiers.map(np.copyto, *(np.array_split(array, MAX_COPIERS) for array in (target, source))))

    def finish(self) -> None:
        """Wait for every copy that is under way, since the pools hand these buffers out again as soon as we are gone.

        A copy outlives the exception that ended the work: it would write its rows into whatever comes to lie there.
        """
        self._copiers.shutdown()
        self._stream.synchronize()


def _pieces(rows: NDArray, capacity: int) -> Iterator[NDArray]:
    """Parts of an array, in order, none of more numbers than ``capacity``; views wherever rows are contiguous."""
    n_rows = capacity // max(1, rows[0].size)
    if n_rows:
        yield from (rows[i : i + n_rows] for i in range(0, len(rows), n_rows))
        return
    for row in rows:
        flat = row.reshape(-1)
        yield from (flat[i : i + capacity] for i in range(0, flat.size, capacity))
