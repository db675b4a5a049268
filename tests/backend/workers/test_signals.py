"""Hearts that beat, stand still, and sleep with the machine."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from arkor.backend.workers.signals import STALL_CHECKS, HeartbeatMonitor, heartbeat


def look(monitor: HeartbeatMonitor, file: Path, *beats: int) -> list[bool]:
    """Look after each of these beats, which are moments in seconds; whether the heart stands still."""
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


def test_a_file_that_is_gone_is_no_matter(tmp_path: Path) -> None:
    with heartbeat(tmp_path / "gone", every=0.01):
        time.sleep(0.05)
    monitor = HeartbeatMonitor()
    for _ in range(STALL_CHECKS + 2):
        monitor.check(tmp_path / "gone")
    assert monitor.stalled_since is None


def test_a_heart_that_stands_still_is_noticed_and_so_is_its_next_beat(tmp_path: Path) -> None:
    file, monitor = tmp_path / "worker.pid", HeartbeatMonitor()
    file.touch()
    still = [5] * (STALL_CHECKS + 1)
    assert look(monitor, file, 1, 3, *still) == [False] * (2 + STALL_CHECKS) + [True]
    assert monitor.stalled_since == "1970-01-01T00:00:05.000Z"
    assert look(monitor, file, 7) == [False]


def test_a_machine_that_slept_has_missed_no_beat(tmp_path: Path) -> None:
    """Hours go by on the clock; nobody looked meanwhile, and the heart goes on with whoever looks."""
    file, monitor = tmp_path / "worker.pid", HeartbeatMonitor()
    file.touch()
    assert not any(look(monitor, file, 1, 3, 3, 3, 3 + 8 * 3600, 5 + 8 * 3600))
