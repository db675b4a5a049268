"""Tells the server at once that some run's log has grown, so that nobody has to look all the time.

A bell is a named pipe in the backend's home. Whoever has appended to a log rings it; the server then looks at the logs
that are watched (`log_watcher.py`). Nothing depends on it: a ring may get lost, and the server looks by itself every
now and then.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

#: How long to wait for a ring before looking anyway, in seconds: with a bell, and where pipes cannot be made.
_PATIENCE, _PATIENCE_WITHOUT = 1.0, 0.05
#: Seconds that a ring is let linger before the next is heard; longer, if to act on it took longer.
_REST = 0.002


def ring(path: Path) -> None:
    """Tell the server, if there is one that listens; never blocks, never fails."""
    with contextlib.suppress(OSError):
        bell = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        try:
            os.write(bell, b"!")
        finally:
            os.close(bell)


class Bell:
    """The listening side; belongs to one event loop.

    Calls `on_ring` at the first ring at once, then at most half of the time: a run that logs thousands of lines a
    second must not keep the server from everything else. Also now and then without a ring, and a last time on closing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reading: int | None = None
        self._writing: int | None = None
        self.on_ring: Callable[[], None] = lambda: None
        self.closed = False

    def open(self) -> None:
        """Begin to listen, on a pipe if one can be had."""
        with contextlib.suppress(OSError):
            if not self._path.exists() or not stat.S_ISFIFO(self._path.stat().st_mode):
                self._path.unlink(missing_ok=True)
                os.mkfifo(self._path, 0o600)
            self._reading = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK)
            self._writing = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK)  # or the pipe would be at its end
            self._listen()
        self._look_anyway()

    def close(self) -> None:
        """Call for the last time, with `closed` true."""
        self.closed = True
        for end in (self._reading, self._writing):
            if end is not None:
                asyncio.get_running_loop().remove_reader(end)
                os.close(end)
        self._reading = self._writing = None
        self.on_ring()

    def _look_anyway(self) -> None:
        if not self.closed:
            self.on_ring()
            patience = _PATIENCE_WITHOUT if self._reading is None else _PATIENCE
            asyncio.get_running_loop().call_later(patience, self._look_anyway)

    def _listen(self) -> None:
        if self._reading is not None:
            asyncio.get_running_loop().add_reader(self._reading, self._hear, self._reading)

    def _hear(self, reading: int) -> None:
        began = time.monotonic()
        os.read(reading, 65536)
        loop = asyncio.get_running_loop()
        loop.remove_reader(reading)
        self.on_ring()
        loop.call_soon(self._rest, began)  # those whom it woke come before

    def _rest(self, began: float) -> None:
        asyncio.get_running_loop().call_later(max(_REST, time.monotonic() - began), self._listen)
