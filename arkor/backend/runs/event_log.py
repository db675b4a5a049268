"""The event log of a run: an append-only file of JSON lines with one writer and many readers.

The id of an event is the byte offset after its line, so a reader resumes by seeking. The writer
holds an exclusive lock on the file while it is open, which is also how other processes detect that
it is alive. A line is stored as it is sent over the wire. Notifying readers is the task of
`log_notifier.py`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from attrs import frozen

from arkor.files import lock_file
from arkor.protocol.codec import dumps
from arkor.protocol.events import CANCELLED_ERROR, TERMINAL_TYPES, Event, encode_event
from arkor.protocol.jobs import JobStatus

_TYPE_OFFSET = len(b'{"type":"')
_BLOCK_BYTES = 8192

#: `is_locked` may hold the lock for a moment.
_LOCK_SECONDS = 0.025


class LogLocked(Exception):
    """Another process is writing this log."""


class LogCorrupted(Exception):
    """The log contains a line that arkor did not write."""


@frozen
class Tail:
    """The last complete event: its id and its type; 0 and None in an empty log."""

    id: int = 0
    type: str | None = None

    @property
    def terminal(self) -> bool:
        return self.type in TERMINAL_TYPES


@frozen
class LogStatus:
    """The state of a run according to its log. Times are formatted as in the events."""

    status: JobStatus
    error: str | None = None
    started_at: str | None = None
    completed_at: str | None = None


class LogWriter:
    """The writer of a log; opening it removes an incomplete last line.

    Raises `LogLocked` if another writer has the log open, unless `wait` is true, and OSError if the
    file cannot be opened.
    """

    def __init__(self, path: Path, *, wait: bool = False) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            self.tail = _lock_and_repair(self._file, wait)
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> LogWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and release its lock. Call it once."""
        os.close(self._file)

    def append(self, event: Event, *, sync: bool = False) -> int:
        """Append the event and return its id. Raise OSError; the log is unchanged then."""
        data = encode_event(event)
        line = (dumps(data) + "\n").encode("utf-8", "replace")
        remaining = line
        try:
            while remaining:  # one pass, unless the disk is nearly full
                remaining = remaining[os.write(self._file, remaining) :]
        except OSError:
            os.ftruncate(self._file, self.tail.id)
            os.lseek(self._file, 0, os.SEEK_END)
            raise
        self.tail = Tail(self.tail.id + len(line), data["type"])
        if sync:
            os.fsync(self._file)
        return self.tail.id


def _lock_and_repair(file: int, wait: bool) -> Tail:
    """Lock an open log, remove its incomplete last line, and move to the end. Raise `LogLocked`."""
    if not lock_file(file, None if wait else _LOCK_SECONDS):
        raise LogLocked
    end, line = _last_line(file)
    os.ftruncate(file, end)
    os.lseek(file, 0, os.SEEK_END)
    return Tail(end, _type(line) if line else None)


def read_events(path: Path, after: int = 0, limit_bytes: int = 65536) -> list[tuple[int, bytes]]:
    """Return (id, line without its end) of about `limit_bytes` of lines after an id.

    The first line is returned whatever its length. An id inside a line continues with the next
    line; an id after the end finds nothing until the log is longer than that. A missing file has no
    events.
    """
    try:
        with path.open("rb", buffering=0) as file:
            return _read_lines(file.fileno(), max(after, 0), limit_bytes)
    except FileNotFoundError:
        return []


def last_id(path: Path) -> int:
    """Return the id of the last complete event, or 0."""
    found = _read_last_line(path)
    return found[0] if found else 0


def is_finished(path: Path) -> bool:
    """Return whether the log is complete: its last event is terminal, or the file is gone."""
    found = _read_last_line(path)
    return found is None or _type(found[1]) in TERMINAL_TYPES


def read_last(path: Path) -> dict[str, Any] | None:
    """Return the last event in wire format, or None. Raise `LogCorrupted`."""
    found = _read_last_line(path)
    return decode_line(found[1]) if found and found[1] else None


def _read_last_line(path: Path) -> tuple[int, bytes] | None:
    """Return the last complete event as `_last_line` does, or None if the file is gone."""
    try:
        with path.open("rb", buffering=0) as file:
            return _last_line(file.fileno())
    except FileNotFoundError:
        return None


def read_status(path: Path) -> LogStatus:
    """Return whether the run is queued, running or has ended. Raise `LogCorrupted`."""
    try:
        with path.open("rb", buffering=0) as file:
            _, line = _last_line(file.fileno())
            if not line:
                return LogStatus(JobStatus.QUEUED)
            first = decode_line(_read_lines(file.fileno(), 0, _BLOCK_BYTES)[0][1])
    except FileNotFoundError:
        return LogStatus(JobStatus.QUEUED)
    if _type(line) not in TERMINAL_TYPES:
        return LogStatus(JobStatus.RUNNING, started_at=first["timestamp"])
    last = decode_line(line)
    started_at = None if first["type"] in TERMINAL_TYPES else first["timestamp"]
    if last.get("error") == CANCELLED_ERROR:
        return LogStatus(JobStatus.CANCELLED, None, started_at, last["timestamp"])
    status = JobStatus(last["type"].removeprefix("training."))
    return LogStatus(status, last.get("error"), started_at, last["timestamp"])


def _read_lines(file: int, after: int, limit: int) -> list[tuple[int, bytes]]:
    start = _line_start(file, after)
    chunk = os.pread(file, limit, start)
    while b"\n" not in chunk:
        more = os.pread(file, limit, start + len(chunk))
        if not more:
            return []
        chunk += more
        limit *= 2
    events = []
    for line in chunk.split(b"\n")[:-1]:
        start += len(line) + 1
        events.append((start, line))
    return events


def _line_start(file: int, offset: int) -> int:
    """Return the offset at or after `offset` at which a line starts, or the end of the file."""
    before = max(offset - 1, 0)
    while offset and (chunk := os.pread(file, _BLOCK_BYTES, before)):
        if b"\n" in chunk:
            return before + chunk.index(b"\n") + 1
        before += len(chunk)
    return before if offset else 0


def _type(line: bytes) -> str:
    return line[_TYPE_OFFSET : line.find(b'"', _TYPE_OFFSET)].decode("utf-8", "replace")


def decode_line(line: bytes) -> dict[str, Any]:
    """Decode a line to its event's JSON object. Raise `LogCorrupted`."""
    try:
        data = json.loads(line)
        return {**data, "type": data["type"], "timestamp": data["timestamp"]}
    except (ValueError, TypeError, KeyError) as error:
        raise LogCorrupted(f"{error!r} in {line[:80]!r}") from error


def _last_line(file: int) -> tuple[int, bytes]:
    """Return the offset after the last complete line and that line, or (0, b"")."""
    end = os.fstat(file).st_size
    size = _BLOCK_BYTES
    while True:
        start = max(end - size, 0)
        chunk = os.pread(file, end - start, start)
        line_end = chunk.rfind(b"\n") + 1
        line_start = chunk.rfind(b"\n", 0, max(line_end - 1, 0)) + 1
        if line_start or start == 0:
            return (start + line_end, chunk[line_start:line_end]) if line_end else (0, b"")
        size *= 4
