"""Detection of other processes that compute while steps are timed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

torch = pytest.importorskip("torch", reason="training needs arkor[local]")

from arkor.backend.preflight.step_timing import CpuContention  # noqa: E402 - it needs torch


@pytest.fixture
def busy_processes() -> Iterator[None]:
    """As many busy processes as there are cores."""
    busy_processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(psutil.cpu_count())]
    yield
    for one in busy_processes:
        one.kill()
        one.wait()


@pytest.mark.slow
def test_busy_processes_are_significant(busy_processes: None) -> None:
    contention = CpuContention()
    compute(3)
    assert contention.is_significant()


def test_an_idle_process_has_no_contention() -> None:
    contention = CpuContention()
    time.sleep(0.3)
    assert not contention.is_significant()


def compute(seconds: float) -> None:
    matrix = torch.ones(256, 256)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        matrix @ matrix
