"""How a worker is asked to stop, and how soon it listens.

While a run is being prepared, SIGTERM breaks off whatever goes on: nothing that is half done then is of any use. Once
training has begun it only raises a sign, at which the engine looks, so that what was learnt is kept.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class StopRequested(BaseException):
    """Preparing was broken off. Not an `Exception`, as no library is to take it for a fault."""


class StopSignal:
    """`requested` from the moment on at which SIGTERM came."""

    def __init__(self) -> None:
        self.requested = False
        self._interrupts = False

    def install(self) -> None:
        """From here on SIGTERM raises it."""
        signal.signal(signal.SIGTERM, self._on_signal)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Inside, the sign raises `StopRequested` wherever the process is, until `poll()` is called."""
        try:
            self._interrupts = True
            self._interrupt_if_requested()
            yield
        finally:
            self._interrupts = False

    def poll(self) -> None:
        """From here on the sign only stands there, for who looks at it."""
        self._interrupts = False

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, nothing is broken off: it is made up for at the end."""
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
