"""The heartbeat of a run: a file whose time stamp moves for as long as its worker is awake.

Whether a worker lives is the log's lock to say; a heartbeat tells one that works from one that stands still (stopped,
swapped out, stuck). Time is counted in looks and not in hours, so that a machine which slept has missed no beat.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

from arkor.protocol.events import format_timestamp

#: How often a heart beats, and is looked at, in seconds.
HEARTBEAT_SECONDS = 2.0

#: So many looks without a beat are a stall.
STALL_CHECKS = 5


@contextlib.contextmanager
def heartbeat(file: Path, every: float = HEARTBEAT_SECONDS) -> Iterator[None]:
    """Touch the file all `every` seconds while the block lasts; a disk that does not take it is no matter."""
    stopped = threading.Event()

    def loop() -> None:
        while not stopped.wait(every):
            with contextlib.suppress(OSError):
                os.utime(file)

    threading.Thread(target=loop, name="heartbeat", daemon=True).start()
    try:
        yield
    finally:
        stopped.set()


class HeartbeatMonitor:
    """What somebody feels who looks at one heart all `HEARTBEAT_SECONDS`."""

    def __init__(self) -> None:
        self._last: int | None = None
        self._missed = 0

    @property
    def stalled_since(self) -> str | None:
        """When the heart beat last, as the time stamp of an event, if it stands still."""
        if self._last is None or self._missed < STALL_CHECKS:
            return None
        return format_timestamp(datetime.fromtimestamp(self._last / 1e9, timezone.utc))

    def check(self, file: Path) -> None:
        """Look once; where there is no file, there is nothing to say of its heart."""
        try:
            beat = file.stat().st_mtime_ns
        except OSError:
            beat = None
        self._missed = self._missed + 1 if beat is not None and beat == self._last else 0
        self._last = beat
