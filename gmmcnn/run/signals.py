"""What a signal does to the work: it ends so that the same command goes on where it stopped.

SIGTERM is how schedulers, containers and shutdowns ask: the part in hand is finished and kept, the record says
``interrupted``, and the exit code is 143. Whoever asks so usually kills soon after, so work that reaches no end of a
part within :data:`GRACE_S` is broken off, and so is all work when a second signal comes. SIGINT, Ctrl-C, breaks off at
once, with 130. What is broken off was not kept yet, and is done again.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from gmmcnn import progress

GRACE_S = 8.0
"""Seconds: containers are killed ten after they were asked, Slurm's jobs thirty."""
EXIT_CODES = {KeyboardInterrupt: 130, progress.Ended: 143}
"""What ended the work → exit code, 128 and the number of the signal."""


@contextmanager
def heeded() -> Iterator[None]:
    """Let SIGTERM end the work in the block with :class:`~gmmcnn.progress.Ended`; in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    again = threading.Timer(GRACE_S, os.kill, [os.getpid(), signal.SIGTERM])
    again.daemon = True

    def end(number: int, frame: FrameType | None) -> None:
        if again.ident:  # asked before
            raise progress.Ended
        progress.end_at_next_step()
        again.start()

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        again.cancel()
        signal.signal(signal.SIGTERM, before)
        progress.go_on()
