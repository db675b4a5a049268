"""Hearts that beat, stand still, and sleep with the machine."""

from __future__ import annotations

import os
import time
from pathlib import Path

from arkor.backend.workers.heartbeat import STALL_LOOKS, Pulse, beating


def look(pulse: Pulse, file: Path, *beats: int) -> list[bool]:
    """Look after each of these beats, which are moments in seconds; whether the heart stands still."""
    found = []
    for beat in beats:
        os.utime(file, (beat, beat))
        pulse.look(file)
        found.append(pulse.stalled_since is not None)
    return found


def test_a_file_is_touched_for_as_long_as_the_block_lasts(tmp_path: Path) -> None:
    file = tmp_path / "worker.pid"
    file.touch()
    os.utime(file, (1, 1))
    with beating(file, every=0.01):
        deadline = time.monotonic() + 30
        while file.stat().st_mtime < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    time.sleep(0.05)
    os.utime(file, (1, 1))
    time.sleep(0.05)
    assert file.stat().st_mtime == 1


def test_a_file_that_is_gone_is_no_matter(tmp_path: Path) -> None:
    with beating(tmp_path / "gone", every=0.01):
        time.sleep(0.05)
    pulse = Pulse()
    for _ in range(STALL_LOOKS + 2):
        pulse.look(tmp_path / "gone")
    assert pulse.stalled_since is None


def test_a_heart_that_stands_still_is_noticed_and_so_is_its_next_beat(tmp_path: Path) -> None:
    file, pulse = tmp_path / "worker.pid", Pulse()
    file.touch()
    still = [5] * (STALL_LOOKS + 1)
    assert look(pulse, file, 1, 3, *still) == [False] * (2 + STALL_LOOKS) + [True]
    assert pulse.stalled_since == "1970-01-01T00:00:05.000Z"
    assert look(pulse, file, 7) == [False]


def test_a_machine_that_slept_has_missed_no_beat(tmp_path: Path) -> None:
    """Hours go by on the clock; nobody looked meanwhile, and the heart goes on with whoever looks."""
    file, pulse = tmp_path / "worker.pid", Pulse()
    file.touch()
    assert not any(look(pulse, file, 1, 3, 3, 3, 3 + 8 * 3600, 5 + 8 * 3600))
