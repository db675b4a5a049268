"""Hears what others are about to print, so that a line which is in the way can be taken away first."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, TextIO


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
        for stream in self._streams:
            try:
                self._listen(stream)
            except AttributeError:  # noqa: PERF203 - there are two streams
                self.deaf = True

    def close(self) -> None:
        self._hear = None  # whoever still holds on to our write gets the stream's own
        for undo in self._undo:
            undo()

    def _listen(self, stream: Any) -> None:
        write = stream.write
        before = vars(stream).get("write") if hasattr(stream, "__dict__") else None

        def heard(text: str) -> Any:
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
