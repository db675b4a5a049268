"""Heartbeats: regular, missing, and of a machine that was suspended."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from arkor.backend.workers.signals import STALL_CHECKS, HeartbeatMonitor, heartbeat


def check(monitor: HeartbeatMonitor, file: Path, *beats: int) -> list[bool]:
    """Check after each of these beats, given in seconds; return whether the worker is stalled."""
    found = []
    for beat in beats:
        os.utime(file, (beat, beat))
        monitor.check(file)
        found.append(monitor.stalled_since is not None)
    return found


def test_a_file_is_touched_for_as_long_as_the_block_lasts(tmp_path: Path) -> None:
    file = tmp_path / "worker.pid"
    file.touch()
    os.utime(file, (1, 1))
    with heartbeat(file, every=0.01):
        deadline = time.monotonic() + 30
        while file.stat().st_mtime < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    for thread in threading.enumerate():
        if thread.name == "heartbeat":
            thread.join()
    os.utime(file, (1, 1))
    time.sleep(0.05)
    assert file.stat().st_mtime == 1


def test_a_missing_file_is_ignored(tmp_path: Path) -> None:
    with heartbeat(tmp_path / "gone", every=0.01):
        time.sleep(0.05)
    monitor = HeartbeatMonitor()
    for _ in range(STALL_CHECKS + 2):
        monitor.check(tmp_path / "gone")
    assert monitor.stalled_since is None


def test_a_stall_is_noticed_and_so_is_the_next_beat(tmp_path: Path) -> None:
    file, monitor = tmp_path / "worker.pid", HeartbeatMonitor()
    file.touch()
    still = [5] * (STALL_CHECKS + 1)
    assert check(monitor, file, 1, 3, *still) == [False] * (2 + STALL_CHECKS) + [True]
    assert monitor.stalled_since == "1970-01-01T00:00:05.000Z"
    assert check(monitor, file, 7) == [False]


def test_a_machine_that_was_suspended_has_missed_no_beat(tmp_path: Path) -> None:
    """Hours pass on the clock, but no check was made meanwhile."""
    file, monitor = tmp_path / "worker.pid", HeartbeatMonitor()
    file.touch()
    assert not any(check(monitor, file, 1, 3, 3, 3, 3 + 8 * 3600, 5 + 8 * 3600))
