"""A thread that calls a function every so often, so that a display moves on while nothing happens."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable


class Ticker:
    """Calls `tick()`, and again after as many seconds as it returns, until it is closed."""

    def __init__(self, tick: Callable[[], float], first_after: float) -> None:
        self._tick = tick
        self._first_after = first_after
        self._closed = threading.Event()
        here = contextvars.copy_context()  # a kernel finds in it which cell the output belongs to
        self._thread = threading.Thread(target=here.run, args=(self._run,), name="arkor-progress", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Returns when the last call is over; to be called without a lock that `tick` takes."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        seconds = self._first_after
        while not self._closed.wait(seconds):
            seconds = self._tick()
