from __future__ import annotations

import multiprocessing
import os
import time

import pytest

from arkor.backend.compute.cpu_threads import MAX_QUIET_SECONDS, CpuThreads


@pytest.fixture
def used() -> list[int]:
    return []


def quiet(threads: CpuThreads, seconds: float) -> None:
    for _ in range(round(seconds / 0.05)):
        threads.observe(0.05, 0.04 * threads.count, 0)


def crowded(threads: CpuThreads) -> None:
    threads.observe(2.0, 0.5 * 2.0 * threads.count, 500)


def test_it_begins_modestly_and_takes_what_is_free(used: list[int]) -> None:
    threads = CpuThreads(6, used.append)
    quiet(threads, 5)
    assert used == [1, 2, 4, 6]


def test_it_makes_way_at_once_and_step_by_step(used: list[int]) -> None:
    threads = CpuThreads(6, used.append)
    quiet(threads, 5)
    for _ in range(4):
        crowded(threads)
    assert used[4:] == [3, 1]


def test_it_tries_again_more_and_more_rarely(used: list[int]) -> None:
    threads = CpuThreads(2, used.append)
    waited = []
    for _ in range(10):
        seconds = 0.0
        while threads.count == 1:
            quiet(threads, 0.2)
            seconds += 0.2
        waited.append(seconds)
        crowded(threads)
    assert waited[:3] == pytest.approx([0.4, 0.8, 1.6], abs=0.3)
    assert waited[-1] == pytest.approx(MAX_QUIET_SECONDS, abs=0.5)


def test_a_long_quiet_restores_its_trust(used: list[int]) -> None:
    threads = CpuThreads(2, used.append)
    for _ in range(5):
        quiet(threads, 3 * MAX_QUIET_SECONDS)
        crowded(threads)
    quiet(threads, 1)
    assert threads.count == 2


def test_short_visits_and_rest_are_no_crowd(used: list[int]) -> None:
    threads = CpuThreads(2, used.append)
    for busy, preemptions in ((1.9, 300), (0.6, 5)) * 10:
        quiet(threads, 0.5)
        threads.observe(1.0, busy, preemptions)
    assert used == [1, 2]


def test_crowding_by_real_processes_is_noticed(used: list[int]) -> None:
    threads = CpuThreads(2, used.append)
    quiet(threads, 1)
    assert threads.count == 2
    spawn = multiprocessing.get_context("spawn")
    others = [spawn.Process(target=_spin, daemon=True) for _ in range(2 * (os.cpu_count() or 1))]
    for other in others:
        other.start()
    deadline = time.monotonic() + 30
    while threads.count == 2 and time.monotonic() < deadline:
        with threads.measured():
            sum(range(1_000_000))
    for other in others:
        other.kill()
        other.join()
    assert threads.count == 1


def _spin() -> None:
    while True:
        pass
