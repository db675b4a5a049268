"""Terminal output: redrawing a line, its width, a hook on printed text, and a timer."""

from __future__ import annotations

import contextvars
import os
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TextIO

#: Return to the start of the line and erase it.
ERASE = "\r\x1b[K"

_open_hooks: weakref.WeakSet[PrintHook] = weakref.WeakSet()


def can_redraw(stream: TextIO) -> bool:
    """Return False for files, pipes and terminals without cursor control."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def columns_of(stream: TextIO) -> int:
    """Return the current width of this terminal; 80 where it is unknown."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def trimmed(text: str, columns: int) -> str:
    """Cut the text to a width in columns; a wide character takes two."""
    from tqdm.utils import disp_trim  # noqa: PLC0415 - needed only to draw a line

    return str(disp_trim(text, columns))


class PrintHook:
    """Call `on_write(text)`, under `lock`, before `text` is written to a terminal.

    The hook replaces `write` of the stream objects, so that it also covers code that has kept a
    reference to one, such as the handlers of `logging`. It does not cover output that bypasses
    Python's streams, such as a subprocess's. `failed` is True if a stream rejected the hook.
    """

    def __init__(self, on_write: Callable[[str], None], lock: threading.RLock) -> None:
        self._on_write: Callable[[str], None] | None = on_write
        self._lock = lock
        self._undo: list[Callable[[], None]] = []
        self.failed = False

    def open(self) -> None:
        _open_hooks.add(self)
        for stream in {id(stream): stream for stream in (sys.stdout, sys.stderr)}.values():
            if stream is None or stream.closed or not stream.isatty():
                continue
            try:
                self._attach(stream)
            except AttributeError:
                self.failed = True

    def close(self) -> None:
        self.detach()
        for undo in self._undo:
            undo()

    def detach(self) -> None:
        """Make the replaced `write` methods call the original ones only."""
        self._on_write = None

    def _attach(self, stream: Any) -> None:
        write = stream.write
        original = vars(stream).get("write") if hasattr(stream, "__dict__") else None

        def hooked_write(text: str) -> Any:
            if self._on_write is None:
                return write(text)
            with self._lock:
                if self._on_write is not None:
                    self._on_write(text)
                return write(text)

        def undo() -> None:
            if vars(stream).get("write") is not hooked_write:
                return  # other code has replaced `write` since and still calls this one
            with suppress(AttributeError):
                del stream.write
                if original is not None:
                    stream.write = original

        stream.write = hooked_write
        self._undo.append(undo)


def _detach_hooks_in_child() -> None:
    """Detach the hooks in a forked child: a lock held by another thread stays locked there."""
    for hook in _open_hooks:
        hook.detach()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_detach_hooks_in_child)


class Ticker:
    """Call `tick()` on a thread, and again after the seconds that it returns, until closed."""

    def __init__(self, tick: Callable[[], float], first_after: float) -> None:
        self._tick = tick
        self._first_after = first_after
        self._closed = threading.Event()
        context = contextvars.copy_context()  # Jupyter stores the current cell in it
        self._thread = threading.Thread(target=context.run, args=(self._run,), name="arkor-progress", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Wait for the end of the last call; the caller must not hold a lock that `tick` takes."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        seconds = self._first_after
        while not self._closed.wait(seconds):
            seconds = self._tick()
