"""Hears what others are about to print, so that a line which is in the way can be taken away first."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, TextIO

_open_hooks: weakref.WeakSet[StdoutHook] = weakref.WeakSet()


class StdoutHook:
    """While open, calls `feed(text)`, under `lock`, before `text` is written to one of the streams.

    It sits on the streams themselves, so that it also hears whoever has kept a reference to one, as the handlers of
    `logging` do. What goes round Python's streams, such as the output of another program, it cannot hear.
    """

    def __init__(self, streams: Iterable[TextIO], on_write: Callable[[str], None], lock: threading.RLock) -> None:
        self._streams: list[Any] = list(streams)
        self._on_write: Callable[[str], None] | None = on_write
        self._lock = lock
        self._undo: list[Callable[[], None]] = []
        self.failed = False

    def open(self) -> None:
        """`failed` is True from here on if a stream did not let itself be listened to."""
        _open_hooks.add(self)
        for stream in self._streams:
            try:
                self._attach(stream)
            except AttributeError:  # noqa: PERF203 - there are two streams
                self.failed = True

    def close(self) -> None:
        self.detach()
        for undo in self._undo:
            undo()

    def detach(self) -> None:
        """Whoever still holds on to our `write` gets the stream's own."""
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
                return  # somebody else came after us, and still writes through us
            with suppress(AttributeError):
                del stream.write
                if original is not None:
                    stream.write = original

        stream.write = hooked_write
        self._undo.append(undo)


def _after_a_fork() -> None:
    """The child has no line to keep clear, and nobody in it who would ever give back a lock that was just taken."""
    for hook in _open_hooks:
        hook.detach()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_a_fork)
