"""A terminal: a child process on a pty, and an emulator that holds what is on its screen."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

import pexpect
import pyte


class Screen:
    """Run a Python script in a terminal to its end; `meanwhile(screen)` is called after each chunk.

    `written` is its whole output, `moments` are (seconds, lines on the screen) after each chunk.
    """

    def __init__(
        self,
        script: str,
        columns: int = 100,
        rows: int = 24,
        meanwhile: Callable[[Screen], None] = lambda _: None,
        **environment: str,
    ) -> None:
        self.moments: list[tuple[float, list[str]]] = []
        self._emulator = pyte.Screen(columns, rows)
        feed, began, received = pyte.ByteStream(self._emulator).feed, time.monotonic(), b""
        environment = {**os.environ, **environment}
        self._child = pexpect.spawn(
            sys.executable, ["-c", script], env=environment, dimensions=(rows, columns), timeout=120
        )
        self.pid: int = self._child.pid
        try:
            while chunk := self._child.read_nonblocking(65536):
                received += chunk
                feed(chunk)
                self.moments.append((time.monotonic() - began, self.lines()))
                meanwhile(self)
        except pexpect.EOF:
            self._child.wait()
            self._child.close()
        self.written = received.decode()
        assert self._child.exitstatus == 0, self.written

    def resize(self, columns: int, rows: int = 24) -> None:
        """Change the size of the window."""
        self._child.setwinsize(rows, columns)
        self._emulator.resize(rows, columns)

    def lines(self) -> list[str]:
        """The lines on the screen, down to the last one that is not empty."""
        # the second half of a wide letter is an empty cell, which the emulator leaves out of its lines
        return "\n".join(line.rstrip() for line in self._emulator.display).rstrip().split("\n")
