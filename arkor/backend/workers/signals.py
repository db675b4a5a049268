"""The signals between a worker and its supervisor: a heartbeat, and SIGTERM as the request to stop.

The heartbeat is a file whose modification time changes while the worker is awake. The lock of the
log shows whether a worker is alive; the heartbeat shows whether it is running, or stopped, swapped
out or stuck. The monitor counts checks and not seconds, so that a machine that was suspended has
missed no beat.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

from arkor.protocol.events import format_timestamp

#: Seconds between two beats, and between two checks.
HEARTBEAT_SECONDS = 2.0

#: How many checks without a beat are a stall.
STALL_CHECKS = 5


@contextlib.contextmanager
def heartbeat(file: Path, every: float = HEARTBEAT_SECONDS) -> Iterator[None]:
    """Touch the file every `every` seconds during the block; errors of the disk are ignored."""
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
    """Detects a stalled worker; `check` is called every `HEARTBEAT_SECONDS`."""

    def __init__(self) -> None:
        self._last: int | None = None
        self._missed = 0

    @property
    def stalled_since(self) -> str | None:
        """The time of the last beat, formatted as in events, if the worker is stalled."""
        if self._last is None or self._missed < STALL_CHECKS:
            return None
        return format_timestamp(datetime.fromtimestamp(self._last / 1e9, timezone.utc))

    def check(self, file: Path) -> None:
        """Compare the modification time to the last check; a missing file is not stalled."""
        try:
            beat = file.stat().st_mtime_ns
        except OSError:
            beat = None
        self._missed = self._missed + 1 if beat is not None and beat == self._last else 0
        self._last = beat


class StopRequested(BaseException):
    """Preparation was interrupted. A BaseException, so that libraries do not catch it."""


class StopSignal:
    """`requested` is set by SIGTERM.

    While a run is being prepared, SIGTERM interrupts it, since nothing unfinished is of use then.
    During training it only sets the flag, which the engine polls, so that the progress is saved.
    """

    def __init__(self) -> None:
        self.requested = False
        self._interrupts = False

    def install(self) -> None:
        """Handle SIGTERM from now on."""
        signal.signal(signal.SIGTERM, self._on_signal)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Raise `StopRequested` on SIGTERM anywhere in the block, until `poll()` is called."""
        try:
            self._interrupts = True
            self._interrupt_if_requested()
            yield
        finally:
            self._interrupts = False

    def poll(self) -> None:
        """Only set the flag on SIGTERM from now on."""
        self._interrupts = False

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Delay an interruption until the end of the block."""
        before, self._interrupts = self._interrupts, False
        try:
            yield
        finally:
            self._interrupts = before
        self._interrupt_if_requested()

    def _on_signal(self, _number: int, _frame: object) -> None:
        self.requested = True
        self._interrupt_if_requested()

    def _interrupt_if_requested(self) -> None:
        if self.requested and self._interrupts:
            raise StopRequested
