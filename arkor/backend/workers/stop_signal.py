"""How a worker is asked to stop, and how soon it listens.

While a run is being prepared, SIGTERM breaks off whatever goes on: nothing that is half done then is of any use. Once
training has begun it only raises a sign, at which the engine looks, so that what was learnt is kept.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Stopped(BaseException):
    """Preparing was broken off. Not an `Exception`, as no library is to take it for a fault."""


class StopSign:
    """`up` from the moment on at which SIGTERM came."""

    def __init__(self) -> None:
        self.up = False
        self._breaks_off = False

    def watch(self) -> None:
        """From here on SIGTERM raises it."""
        signal.signal(signal.SIGTERM, self._raise)

    @contextmanager
    def breaking_off(self) -> Iterator[None]:
        """Inside, the sign raises `Stopped` wherever the process is, until `mind()` is called."""
        try:
            self._breaks_off = True
            self._look()
            yield
        finally:
            self._breaks_off = False

    def mind(self) -> None:
        """From here on the sign only stands there, for who looks at it."""
        self._breaks_off = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, nothing is broken off: it is made up for at the end."""
        before, self._breaks_off = self._breaks_off, False
        try:
            yield
        finally:
            self._breaks_off = before
        self._look()

    def _raise(self, _number: int, _frame: object) -> None:
        self.up = True
        self._look()

    def _look(self) -> None:
        if self.up and self._breaks_off:
            raise Stopped
