"""How an estimate judges what else was computed beside its timed steps."""

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
def crowd() -> Iterator[None]:
    """As many processes that never rest as there are cores."""
    crowd = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(psutil.cpu_count())]
    yield
    for one in crowd:
        one.kill()
        one.wait()


@pytest.mark.slow
def test_others_that_take_cores_count(crowd: None) -> None:
    company = CpuContention()
    compute(3)
    assert company.is_significant()


def test_who_only_rests_has_no_company() -> None:
    company = CpuContention()
    time.sleep(0.3)
    assert not company.is_significant()


def compute(seconds: float) -> None:
    matrix = torch.ones(256, 256)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        matrix @ matrix
