"""Notify the server that the log of a run has grown, so that it need not poll.

The channel is a named pipe in the backend's home. A process that has appended to a log writes a
byte to it; the server then checks the logs that clients follow (`log_watcher.py`). A lost
notification is harmless, since the server also polls at a low rate.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

#: Seconds between polls with a pipe, and where pipes cannot be made.
_POLL_SECONDS, _POLL_SECONDS_WITHOUT_PIPE = 1.0, 0.05

#: Minimum seconds between two reactions to notifications; longer if the reaction itself takes
#: longer.
_MIN_INTERVAL = 0.002


def notify(path: Path) -> None:
    """Notify the server, if one is listening. Never block and never fail."""
    with contextlib.suppress(OSError):
        pipe = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        try:
            os.write(pipe, b"!")
        finally:
            os.close(pipe)


class LogNotifier:
    """The receiving end; it belongs to one event loop.

    `on_notify` is called at once for a first notification, then at most half of the time, so that a
    run that logs thousands of lines per second does not keep the server busy. It is also called at
    each poll and once on closing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reading: int | None = None
        self._writing: int | None = None
        self.on_notify: Callable[[], None] = lambda: None
        self.closed = False

    def open(self) -> None:
        """Start listening, on a pipe if the file system supports it."""
        with contextlib.suppress(OSError):
            if not self._path.exists() or not stat.S_ISFIFO(self._path.stat().st_mode):
                self._path.unlink(missing_ok=True)
                os.mkfifo(self._path, 0o600)
            self._reading = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK)
            self._writing = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK)  # without a writer, reading returns EOF
            self._watch_pipe()
        self._poll()

    def close(self) -> None:
        """Stop listening, and call `on_notify` a last time with `closed` set."""
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
        loop.call_soon(self._resume_later, began)  # after the tasks that `on_notify` woke, whose time counts too

    def _resume_later(self, began: float) -> None:
        asyncio.get_running_loop().call_later(max(_MIN_INTERVAL, time.monotonic() - began), self._watch_pipe)
