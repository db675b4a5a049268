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
class LogLine:
    """An event as on the wire, and the byte at which its line begins."""

    offset: int
    event: dict[str, Any]


class LogIndex:
    """A log's lines by type, as far as they are complete. Reading one raises `LogCorrupted`."""

    def __init__(self, data: mmap.mmap | bytes) -> None:
        self._data = data
        self._end = data.rfind(b"\n") + 1

    def events_of_type(self, kind: str, begin: int = 0, end: int | None = None) -> Iterator[LogLine]:
        """The lines of that type that begin between these bytes, in order."""
        marker, end = _type_marker(kind), self._end if end is None else end
        position = self._data.find(marker, begin, end)
        while position >= 0:
            if self._is_line_start(position):
                yield self._line_at(position)
            position = self._data.find(marker, position + 1, end)

    def last_of_type(self, kind: str, end: int | None = None) -> LogLine | None:
        """The last line of that type that begins before this byte."""
        marker = _type_marker(kind)
        position = self._data.rfind(marker, 0, self._end if end is None else end)
        while position >= 0 and not self._is_line_start(position):
            position = self._data.rfind(marker, 0, position)
        return self._line_at(position) if position >= 0 else None

    def _is_line_start(self, position: int) -> bool:
        """What looks like an event within a line is text."""
        return position == 0 or self._data[position - 1 : position] == b"\n"

    def _line_at(self, position: int) -> LogLine:
        return LogLine(position, decode_line(self._data[position : self._data.find(b"\n", position)]))


def _type_marker(kind: str) -> bytes:
    return b'{"type":"%s"' % kind.encode()


@contextmanager
def open_log_index(log: Path) -> Iterator[LogIndex]:
    """Of the log as it is now; none of one that is not there. Raises OSError."""
    try:
        file = log.open("rb")
    except FileNotFoundError:
        yield LogIndex(b"")
        return
    with file:
        if not file.seek(0, 2):  # nothing cannot be mapped
            yield LogIndex(b"")
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield LogIndex(data)
