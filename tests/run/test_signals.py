"""What SIGTERM does to work in this process."""

import os
import signal
import threading
import time

import pytest

from gmmcnn import progress
from gmmcnn.run import signals


def ask() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@signals.heeded()
def in_parts(kept: list[int]) -> None:
    with progress.progress("parts", 3, "parts") as advance:
        for part in range(3):
            if part == 1:
                ask()
            kept.append(part)
            advance()


@signals.heeded()
def without_end(n_asked: int) -> None:
    for _ in range(n_asked):
        ask()
    time.sleep(10)


def test_the_part_in_hand_is_finished():
    kept = []
    with pytest.raises(progress.Ended):
        in_parts(kept)
    assert kept == [0, 1]


def test_work_that_comes_to_no_end_of_a_part_is_broken_off(monkeypatch):
    monkeypatch.setattr(signals, "GRACE_S", 0.05)
    with pytest.raises(progress.Ended):
        without_end(1)


def test_a_second_signal_breaks_off():
    with pytest.raises(progress.Ended):
        without_end(2)


def test_what_was_there_before_is_there_afterwards():
    before = signal.getsignal(signal.SIGTERM)
    with signals.heeded():
        ask()
    assert signal.getsignal(signal.SIGTERM) == before
    with progress.progress("parts", 1, "parts") as advance:
        advance()  # nobody asks any more


def test_another_thread_is_left_alone():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with signals.heeded():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
