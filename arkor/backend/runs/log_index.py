"""Search an event log by type without parsing every line.

Most lines of a long run are metrics, which crash reporting and resuming do not need. Followers of a
log read it through `event_log.py`.
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
    """An event in wire format, and the byte offset at which its line starts."""

    offset: int
    event: dict[str, Any]


class LogIndex:
    """The complete lines of a log by type. Decoding a line raises `LogCorrupted`."""

    def __init__(self, data: mmap.mmap | bytes) -> None:
        self._data = data
        self._end = data.rfind(b"\n") + 1

    def events_of_type(self, kind: str, begin: int = 0, end: int | None = None) -> Iterator[LogLine]:
        """Yield the lines of this type that start between two byte offsets, in order."""
        marker, end = _type_marker(kind), self._end if end is None else end
        position = self._data.find(marker, begin, end)
        while position >= 0:
            if self._is_line_start(position):
                yield self._line_at(position)
            position = self._data.find(marker, position + 1, end)

    def last_of_type(self, kind: str, end: int | None = None) -> LogLine | None:
        """Return the last line of this type that starts before a byte offset."""
        marker = _type_marker(kind)
        position = self._data.rfind(marker, 0, self._end if end is None else end)
        while position >= 0 and not self._is_line_start(position):
            position = self._data.rfind(marker, 0, position)
        return self._line_at(position) if position >= 0 else None

    def _is_line_start(self, position: int) -> bool:
        """Return whether a marker starts a line; a text inside an event may contain one too."""
        return position == 0 or self._data[position - 1 : position] == b"\n"

    def _line_at(self, position: int) -> LogLine:
        return LogLine(position, decode_line(self._data[position : self._data.find(b"\n", position)]))


def _type_marker(kind: str) -> bytes:
    return b'{"type":"%s"' % kind.encode()


@contextmanager
def open_log_index(log: Path) -> Iterator[LogIndex]:
    """Open a log as it is now; a missing file counts as empty. Raise OSError."""
    try:
        file = log.open("rb")
    except FileNotFoundError:
        yield LogIndex(b"")
        return
    with file:
        if not file.seek(0, 2):  # an empty file cannot be mapped
            yield LogIndex(b"")
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield LogIndex(data)
