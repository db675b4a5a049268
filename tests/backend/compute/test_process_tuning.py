"""Process settings for computing, and the number of threads under load."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time

import psutil
import pytest

from arkor.backend.compute.process_tuning import (
    CACHED_SHAPES,
    MAX_QUIET_SECONDS,
    CpuThreads,
    limit_onednn_cache,
    other_process_cpu_seconds,
)

#: A layer as large as the starter model's, with batches of many lengths.
MANY_SHAPES = """
from arkor.backend.compute.process_tuning import peak_memory_bytes, prepare_to_compute
prepare_to_compute()
import torch
layer = torch.nn.Linear(1536, 1536, dtype=torch.bfloat16)
with torch.no_grad():
    layer(torch.ones(8, 1536, dtype=torch.bfloat16))
    before = peak_memory_bytes()
    for length in range(9, 209):
        layer(torch.ones(length, 1536, dtype=torch.bfloat16))
print((peak_memory_bytes() - before) // 2**20)
"""


@pytest.mark.slow
def test_many_shapes_need_little_memory() -> None:
    command = [sys.executable, "-c", MANY_SHAPES]
    grown = int(subprocess.check_output(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True))
    assert grown < 90  # megabytes; 143 if every shape is cached


def test_the_environment_takes_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "")
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY")  # so that it is removed at the end
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "7")
    limit_onednn_cache()
    assert os.environ["LRU_CACHE_CAPACITY"] == "7"
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == str(CACHED_SHAPES)


SPIN = "import time\nwhile time.process_time() < 1: pass"


def test_the_cpu_time_of_other_processes() -> None:
    others, began = other_process_cpu_seconds(), time.monotonic()
    subprocess.run([sys.executable, "-c", SPIN], check=True)
    assert 0.9 < other_process_cpu_seconds() - others < (time.monotonic() - began + 0.1) * psutil.cpu_count()
    others, began, computed = other_process_cpu_seconds(), time.monotonic(), time.process_time()
    while time.process_time() < computed + 1:
        pass
    assert other_process_cpu_seconds() - others < (time.monotonic() - began + 0.1) * psutil.cpu_count() - 0.9


# Threads


@pytest.fixture
def used() -> list[int]:
    return []


def quiet(threads: CpuThreads, seconds: float) -> None:
    for _ in range(round(seconds / 0.05)):
        threads.observe(0.05, 0.04 * threads.count, 0)


def crowded(threads: CpuThreads) -> None:
    threads.observe(2.0, 0.5 * 2.0 * threads.count, 500)


def test_threads_increase_on_an_idle_machine(used: list[int]) -> None:
    threads = CpuThreads(6, used.append)
    quiet(threads, 5)
    assert used == [1, 2, 4, 6]


def test_threads_halve_under_load(used: list[int]) -> None:
    threads = CpuThreads(6, used.append)
    quiet(threads, 5)
    for _ in range(4):
        crowded(threads)
    assert used[4:] == [3, 1]


def test_retries_become_rarer(used: list[int]) -> None:
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


def test_a_long_idle_time_resets_the_wait(used: list[int]) -> None:
    threads = CpuThreads(2, used.append)
    for _ in range(5):
        quiet(threads, 3 * MAX_QUIET_SECONDS)
        crowded(threads)
    quiet(threads, 1)
    assert threads.count == 2


def test_short_preemptions_and_idle_threads_are_not_load(used: list[int]) -> None:
    threads = CpuThreads(2, used.append)
    for busy, preemptions in ((1.9, 300), (0.6, 5)) * 10:
        quiet(threads, 0.5)
        threads.observe(1.0, busy, preemptions)
    assert used == [1, 2]


def test_load_of_real_processes_is_detected(used: list[int]) -> None:
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
