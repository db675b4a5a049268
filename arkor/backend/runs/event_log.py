"""A run's append-only event log: a file of JSON lines, one writer, any number of readers.

The id of an event is the byte offset behind its line, so that resuming is seeking. The writer holds an exclusive lock
on the file for as long as it lives, which is also how others know that it lives. A line is exactly what goes out on
the wire. How long a line stays unread, and who is told of it, is not known here (`log_notifier.py`).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from attrs import frozen

from arkor.protocol.codec import dumps
from arkor.protocol.events import CANCELLED_ERROR, TERMINAL_TYPES, Event, encode_event
from arkor.protocol.jobs import JobStatus

_TYPE_OFFSET = len(b'{"type":"')
_BLOCK_BYTES = 8192
_LOCK_ATTEMPTS = 5


class LogLocked(Exception):
    """Another process is writing this log."""


class LogCorrupted(Exception):
    """Something else than arkor has written into this log."""


@frozen
class Tail:
    """The last complete event: its id (0 when there is none) and its type."""

    id: int = 0
    type: str | None = None

    @property
    def terminal(self) -> bool:
        return self.type in TERMINAL_TYPES


@frozen
class LogStatus:
    """Where a run stands, as its log says. Times as in the events."""

    status: JobStatus
    error: str | None = None
    started_at: str | None = None
    completed_at: str | None = None


class LogWriter:
    """The one writer of a log, from construction to `close()`; a torn last line is cut off on the way in.

    Raises `LogLocked` when there is another one, unless told to `wait` until it is gone; OSError when the file cannot
    be opened.
    """

    def __init__(self, path: Path, *, wait: bool = False) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _lock(self._file, wait)
            end, line = _last_line(self._file)
            self.tail = Tail(end, _type(line) if line else None)
            os.ftruncate(self._file, end)
            os.lseek(self._file, 0, os.SEEK_END)
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> LogWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file and its lock. Only once."""
        os.close(self._file)

    def append(self, event: Event, *, sync: bool = False) -> int:
        """Write the event in one go and return its id; with `sync` it is on the disk on return.

        Raises OSError, and then the log is as it was before.
        """
        data = encode_event(event)
        line = (dumps(data) + "\n").encode("utf-8", "replace")
        remaining = line
        try:
            while remaining:  # once, unless the disk is nearly full
                remaining = remaining[os.write(self._file, remaining) :]
        except OSError:
            os.ftruncate(self._file, self.tail.id)
            os.lseek(self._file, 0, os.SEEK_END)
            raise
        self.tail = Tail(self.tail.id + len(line), data["type"])
        if sync:
            os.fsync(self._file)
        return self.tail.id


def is_locked(path: Path) -> bool:
    """Whether a writer of this log lives."""
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def read_events(path: Path, after: int = 0, limit_bytes: int = 65536) -> list[tuple[int, str, bytes]]:
    """The complete lines behind the id `after` as (id, type, line without its end), about `limit_bytes` of them.

    At least one, however long, if there is one. An id in the middle of a line goes on with the next line; one
    beyond the end finds nothing until the log has grown past it. No file, no events.
    """
    try:
        with path.open("rb", buffering=0) as file:
            return _read_lines(file.fileno(), max(after, 0), limit_bytes)
    except FileNotFoundError:
        return []


def last_id(path: Path) -> int:
    """The id of the last complete event; 0 when there is none."""
    try:
        with path.open("rb", buffering=0) as file:
            return _last_line(file.fileno())[0]
    except FileNotFoundError:
        return 0


def is_finished(path: Path) -> bool:
    """Whether nothing more will come: the last event is a terminal one, or somebody has removed the log."""
    try:
        with path.open("rb", buffering=0) as file:
            return _type(_last_line(file.fileno())[1]) in TERMINAL_TYPES
    except FileNotFoundError:
        return True


def read_last(path: Path) -> dict[str, Any] | None:
    """The last event, as on the wire; None when there is none. Raises `LogCorrupted`."""
    try:
        with path.open("rb", buffering=0) as file:
            _, line = _last_line(file.fileno())
    except FileNotFoundError:
        return None
    return decode_line(line) if line else None


def read_status(path: Path) -> LogStatus:
    """Where the run stands: no event yet is queued, a terminal one says how it ended, else it is running.

    Raises `LogCorrupted`.
    """
    try:
        with path.open("rb", buffering=0) as file:
            _, line = _last_line(file.fileno())
            if not line:
                return LogStatus(JobStatus.QUEUED)
            first = decode_line(_read_lines(file.fileno(), 0, _BLOCK_BYTES)[0][2])
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


def _read_lines(file: int, after: int, limit: int) -> list[tuple[int, str, bytes]]:
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
        events.append((start, _type(line), line))
    return events


def _line_start(file: int, offset: int) -> int:
    """The offset itself if a line starts there, else where the next one does, else the end of the file."""
    before = max(offset - 1, 0)
    while offset and (chunk := os.pread(file, _BLOCK_BYTES, before)):
        if b"\n" in chunk:
            return before + chunk.index(b"\n") + 1
        before += len(chunk)
    return before if offset else 0


def _type(line: bytes) -> str:
    return line[_TYPE_OFFSET : line.find(b'"', _TYPE_OFFSET)].decode("utf-8", "replace")


def decode_line(line: bytes) -> dict[str, Any]:
    """A line → its event's JSON object. Raises `LogCorrupted`."""
    try:
        data = json.loads(line)
        return {**data, "type": data["type"], "timestamp": data["timestamp"]}
    except (ValueError, TypeError, KeyError) as error:
        raise LogCorrupted(f"{error!r} in {line[:80]!r}") from error


def _last_line(file: int) -> tuple[int, bytes]:
    """The last complete line and the offset behind it; (0, b"") when there is none. What follows it is torn."""
    end = os.fstat(file).st_size
    size = _BLOCK_BYTES
    while True:
        start = max(end - size, 0)
        chunk = os.pread(file, end - start, start)
        behind = chunk.rfind(b"\n") + 1
        line_start = chunk.rfind(b"\n", 0, max(behind - 1, 0)) + 1
        if line_start or start == 0:
            return (start + behind, chunk[line_start:behind]) if behind else (0, b"")
        size *= 4


def _lock(file: int, wait: bool) -> None:
    if wait:
        return fcntl.flock(file, fcntl.LOCK_EX)
    for _ in range(_LOCK_ATTEMPTS):
        with contextlib.suppress(BlockingIOError):
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(0.005)  # it may be somebody in `is_locked`, for an instant
    raise LogLocked
