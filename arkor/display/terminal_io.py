"""Terminal output: whether a line can be redrawn, the width of a terminal, and a thread that redraws."""

from __future__ import annotations

import contextvars
import os
import threading
from collections.abc import Callable
from typing import TextIO

#: Goes back to the beginning of the line and takes away what stands there.
ERASE = "\r\x1b[K"


def can_redraw(stream: TextIO) -> bool:
    """False for files and pipes, and for terminals that can only go on."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def columns_of(stream: TextIO) -> int:
    """How wide this very terminal is now; 80 where it does not say."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def trimmed(text: str, columns: int) -> str:
    """What fits, a wide letter taking two columns."""
    from tqdm.utils import disp_trim  # noqa: PLC0415 - only where a line is drawn

    return str(disp_trim(text, columns))


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
