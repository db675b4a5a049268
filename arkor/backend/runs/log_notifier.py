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
_POLL_SECONDS, _POLL_SECONDS_WITHOUT_PIPE = 1.0, 0.05
#: Seconds that a ring is let linger before the next is heard; longer, if to act on it took longer.
_MIN_INTERVAL = 0.002


def notify(path: Path) -> None:
    """Tell the server, if there is one that listens; never blocks, never fails."""
    with contextlib.suppress(OSError):
        pipe = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        try:
            os.write(pipe, b"!")
        finally:
            os.close(pipe)


class LogNotifier:
    """The listening side; belongs to one event loop.

    Calls `on_notify` at the first ring at once, then at most half of the time: a run that logs thousands of lines a
    second must not keep the server from everything else. Also now and then without a ring, and a last time on closing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reading: int | None = None
        self._writing: int | None = None
        self.on_notify: Callable[[], None] = lambda: None
        self.closed = False

    def open(self) -> None:
        """Begin to listen, on a pipe if one can be had."""
        with contextlib.suppress(OSError):
            if not self._path.exists() or not stat.S_ISFIFO(self._path.stat().st_mode):
                self._path.unlink(missing_ok=True)
                os.mkfifo(self._path, 0o600)
            self._reading = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK)
            self._writing = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK)  # or the pipe would be at its end
            self._watch_pipe()
        self._poll()

    def close(self) -> None:
        """Call for the last time, with `closed` true."""
        self.closed = True
        for end in (self._reading, self._writing):
            if end is not None:
                asyncio.get_running_loop().remove_reader(end)
                os.close(end)
        self._reading = self._writing = None
        self.on_notify()

    def _poll(self) -> None:
        if not self.closed:
            self.on_notify()
            interval = _POLL_SECONDS_WITHOUT_PIPE if self._reading is None else _POLL_SECONDS
            asyncio.get_running_loop().call_later(interval, self._poll)

    def _watch_pipe(self) -> None:
        if self._reading is not None:
            asyncio.get_running_loop().add_reader(self._reading, self._on_readable, self._reading)

    def _on_readable(self, reading: int) -> None:
        began = time.monotonic()
        os.read(reading, 65536)
        loop = asyncio.get_running_loop()
        loop.remove_reader(reading)
        self.on_notify()
        loop.call_soon(self._resume_later, began)  # those whom it woke come before

    def _resume_later(self, began: float) -> None:
        asyncio.get_running_loop().call_later(max(_MIN_INTERVAL, time.monotonic() - began), self._watch_pipe)
