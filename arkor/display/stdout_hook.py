"""Hears what others are about to print, so that a line which is in the way can be taken away first."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, TextIO

_listening: weakref.WeakSet[Ear] = weakref.WeakSet()


class Ear:
    """While open, calls `hear(text)`, under `lock`, before `text` is written to one of the streams.

    It sits on the streams themselves, so that it also hears whoever has kept a reference to one, as the handlers of
    `logging` do. What goes round Python's streams, such as the output of another program, it cannot hear.
    """

    def __init__(self, streams: Iterable[TextIO], hear: Callable[[str], None], lock: threading.RLock) -> None:
        self._streams: list[Any] = list(streams)
        self._hear: Callable[[str], None] | None = hear
        self._lock = lock
        self._undo: list[Callable[[], None]] = []
        self.deaf = False

    def open(self) -> None:
        """`deaf` is True from here on if a stream did not let itself be listened to."""
        _listening.add(self)
        for stream in self._streams:
            try:
                self._listen(stream)
            except AttributeError:  # noqa: PERF203 - there are two streams
                self.deaf = True

    def close(self) -> None:
        self.stop_hearing()
        for undo in self._undo:
            undo()

    def stop_hearing(self) -> None:
        """Whoever still holds on to our `write` gets the stream's own."""
        self._hear = None

    def _listen(self, stream: Any) -> None:
        write = stream.write
        before = vars(stream).get("write") if hasattr(stream, "__dict__") else None

        def heard(text: str) -> Any:
            if self._hear is None:
                return write(text)
            with self._lock:
                if self._hear is not None:
                    self._hear(text)
                return write(text)

        def undo() -> None:
            if vars(stream).get("write") is not heard:
                return  # somebody else came after us, and still writes through us
            with suppress(AttributeError):
                del stream.write
                if before is not None:
                    stream.write = before

        stream.write = heard
        self._undo.append(undo)


def _after_a_fork() -> None:
    """The child has no line to keep clear, and nobody in it who would ever give back a lock that was just taken."""
    for ear in _listening:
        ear.stop_hearing()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_a_fork)
