"""A terminal with somebody looking at it: a child on a pty, and an emulator that shows what stands on its screen."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import sys
import termios
import time
from collections.abc import Callable

import pyte


class Screen:
    """Runs a Python script in a terminal of `columns` × `rows`, to its end.

    `written` is all that came, `moments` are (seconds, lines on the screen) after each piece of it. `meanwhile(screen)`
    is called after each piece.
    """

    def __init__(
        self,
        script: str,
        columns: int = 100,
        rows: int = 24,
        meanwhile: Callable[[Screen], None] = lambda _: None,
        **environment: str,
    ) -> None:
        self.written = ""
        self.moments: list[tuple[float, list[str]]] = []
        self._emulator = pyte.Screen(columns, rows)
        self._feed = pyte.ByteStream(self._emulator)
        self.pid, self._end = pty.fork()
        if self.pid == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            # not execv: below os.environ, readline has put a COLUMNS of its own into the environment
            os.execve(sys.executable, [sys.executable, "-c", script], {**os.environ, **environment})
        self._watch(meanwhile)
        os.close(self._end)
        assert os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]) == 0, self.written

    def resize(self, columns: int, rows: int = 24) -> None:
        """Somebody pulls at the corner of the window."""
        fcntl.ioctl(self._end, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self._emulator.resize(rows, columns)

    def lines(self) -> list[str]:
        """What stands on the screen, from the top to the last line that is not empty."""
        # the second half of a wide letter is an empty cell, which the emulator leaves out of its lines
        return "\n".join(line.rstrip() for line in self._emulator.display).rstrip().split("\n")

    def _watch(self, meanwhile: Callable[[Screen], None]) -> None:
        began, received = time.monotonic(), b""
        try:
            while chunk := os.read(self._end, 65536):
                received += chunk
                self._feed.feed(chunk)
                self.moments.append((time.monotonic() - began, self.lines()))
                meanwhile(self)
        except OSError:  # how Linux says that the other end is closed
            pass
        self.written = received.decode()
