"""The few lines of a long log that somebody needs, found without the others being understood.

Of a run of hundreds of thousands of steps most lines are numbers that nobody who buries or resumes it asks for. Who
follows a log reads it through `event_log.py`.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import frozen

from arkor.backend.runs.event_log import decode_line


@frozen
class Line:
    """An event as on the wire, and the byte at which its line begins."""

    begin: int
    event: dict[str, Any]


class Excerpts:
    """A log's lines by type, as far as they are complete. Reading one raises `LogDamaged`."""

    def __init__(self, data: mmap.mmap | bytes) -> None:
        self._data = data
        self._end = data.rfind(b"\n") + 1

    def of(self, kind: str, begin: int = 0, end: int | None = None) -> Iterator[Line]:
        """The lines of that type that begin between these bytes, in order."""
        mark, end = _mark(kind), self._end if end is None else end
        at = self._data.find(mark, begin, end)
        while at >= 0:
            if self._begins(at):
                yield self._line(at)
            at = self._data.find(mark, at + 1, end)

    def last(self, kind: str, end: int | None = None) -> Line | None:
        """The last line of that type that begins before this byte."""
        mark = _mark(kind)
        at = self._data.rfind(mark, 0, self._end if end is None else end)
        while at >= 0 and not self._begins(at):
            at = self._data.rfind(mark, 0, at)
        return self._line(at) if at >= 0 else None

    def _begins(self, at: int) -> bool:
        """What looks like an event within a line is text."""
        return at == 0 or self._data[at - 1 : at] == b"\n"

    def _line(self, at: int) -> Line:
        return Line(at, decode_line(self._data[at : self._data.find(b"\n", at)]))


def _mark(kind: str) -> bytes:
    return b'{"type":"%s"' % kind.encode()


@contextmanager
def excerpts(log: Path) -> Iterator[Excerpts]:
    """Of the log as it is now; none of one that is not there. Raises OSError."""
    try:
        file = log.open("rb")
    except FileNotFoundError:
        yield Excerpts(b"")
        return
    with file:
        if not file.seek(0, 2):  # nothing cannot be mapped
            yield Excerpts(b"")
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield Excerpts(data)
