"""Blocks cover the items once, whoever works on them, and a failure ends the work."""

import os
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmmcnn.hardware import threads
from gmmcnn.hardware.threads import available_cores, for_blocks


def blocks_of(n_items: int, n_threads: int | None, **options: int) -> list[tuple[int, int]]:
    taken: list[tuple[int, int]] = []
    for_blocks(lambda first, last: taken.append((first, last)), n_items, n_threads, **options)
    return taken


@given(n_items=st.integers(0, 3000), n_threads=st.integers(1, 4), largest=st.integers(1, 100))
def test_every_item_is_worked_on_once(n_items: int, n_threads: int, largest: int) -> None:
    blocks = blocks_of(n_items, n_threads, largest_block=largest)
    assert sorted(item for first, last in blocks for item in range(first, last)) == list(range(n_items))
    assert all(0 < last - first <= largest for first, last in blocks)


def test_one_thread_takes_large_blocks_in_order_and_in_the_callers_thread() -> None:
    seen: list[tuple[int, int, int]] = []
    for_blocks(lambda first, last: seen.append((first, last, threading.get_ident())), 150, 1)
    assert seen == [(first, last, threading.get_ident()) for first, last in ((0, 64), (64, 128), (128, 150))]


def test_several_threads_share_small_blocks() -> None:
    workers = set()

    def work(first: int, last: int) -> None:
        workers.add(threading.get_ident())
        time.sleep(0.002)

    for_blocks(work, 3 * threads.BLOCKS_PER_THREAD, 3)
    assert len(workers) == 3
    assert threading.get_ident() not in workers
    assert len(blocks_of(30 * threads.BLOCKS_PER_THREAD, 3)) == 3 * threads.BLOCKS_PER_THREAD


@pytest.mark.parametrize("n_threads", [1, 2])
def test_a_failure_reaches_the_caller_and_later_blocks_are_left_undone(n_threads: int) -> None:
    done = []

    def work(first: int, last: int) -> None:
        if first == 0:
            raise ZeroDivisionError
        time.sleep(0.01)
        done.append(first)

    with pytest.raises(ZeroDivisionError):
        for_blocks(work, 1000, n_threads, largest_block=1)
    assert len(done) < 20


def test_no_number_of_threads_means_every_core_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    pools: list[int] = []

    class Pool(threads.ThreadPoolExecutor):
        def __init__(self, workers: int) -> None:
            pools.append(workers)
            super().__init__(workers)

    monkeypatch.setattr(threads, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(threads, "available_cores", lambda: 5)
    blocks_of(100, None)
    assert pools == [5]


def test_cores_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert available_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert available_cores() == 64
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores() == 1
