"""Tells the server at once that some run's log has grown, so that nobody has to look all the time.

A bell is a named pipe in the backend's home. Whoever has appended to a log rings it; the server wakes those who tail
one. Nothing depends on it: a ring may get lost, and those who wait look again by themselves every now and then.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from pathlib import Path

#: How long to wait for a ring before looking anyway, in seconds: with a bell, and where pipes cannot be made.
_PATIENCE, _PATIENCE_WITHOUT = 1.0, 0.05


def ring(path: Path) -> None:
    """Wake those who wait, if there is a server that listens; never blocks, never fails."""
    with contextlib.suppress(OSError):
        bell = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        try:
            os.write(bell, b"!")
        finally:
            os.close(bell)


class Bell:
    """The listening side; belongs to one event loop."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rung = asyncio.Event()
        self._ends: tuple[int, ...] = ()
        self.closed = False

    def open(self) -> None:
        """Begin to listen, on a pipe if one can be had."""
        try:
            if not self._path.exists() or not stat.S_ISFIFO(self._path.stat().st_mode):
                self._path.unlink(missing_ok=True)
                os.mkfifo(self._path, 0o600)
            reading = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            return
        writing = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK)  # without a writer the pipe would be at its end
        self._ends = (reading, writing)
        asyncio.get_running_loop().add_reader(reading, self._hear, reading)

    def close(self) -> None:
        """Wake everybody for the last time; from here on `closed` is true and `wait` does not wait."""
        self.closed = True
        self._rung.set()
        for end in self._ends:
            asyncio.get_running_loop().remove_reader(end)
            os.close(end)
        self._ends = ()

    async def wait(self, longest: float) -> None:
        """Until the next ring, or the time to look anyway, or `longest` seconds, whichever comes first."""
        patience = _PATIENCE if self._ends else _PATIENCE_WITHOUT
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._rung.wait(), min(longest, patience))

    def _hear(self, reading: int) -> None:
        os.read(reading, 65536)
        self._rung.set()
        self._rung = asyncio.Event()
