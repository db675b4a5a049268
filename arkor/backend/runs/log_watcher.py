"""Follow the log of a run: the events so far as frames, then new ones until the run ends.

A log is checked and read once for all followers at the same position. `sse.py` defines the frames,
`log_notifier.py` reports that a log has grown, and the routes decide who may follow a run.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from pathlib import Path

from attrs import frozen

from arkor.backend.runs.event_log import is_finished, read_events
from arkor.backend.runs.log_notifier import LogNotifier
from arkor.backend.runs.sse import END, PING, frame
from arkor.protocol.events import TERMINAL_TYPES

PING_SECONDS = 15.0

_CHUNK_BYTES = 65536

#: The size at which a chunk with a long event is split, so that a slow reader buffers little of it.
_SEND_BYTES = 2 * _CHUNK_BYTES

#: The limits of the cache of a log; both apply.
_CACHED_CHUNKS, _CACHED_BYTES = 16, 4 * 1024 * 1024


@frozen
class Chunk:
    """A part of a log as frames, the id to continue after, and whether it ends the run."""

    frames: bytes
    end: int
    terminal: bool


def _snapshot(path: Path) -> tuple[int, int, int]:
    """Return the size of a file (-1 if it is missing), its inode and modification time."""
    try:
        status = path.stat()
    except OSError:
        return -1, 0, 0
    return status.st_size, status.st_ino, status.st_mtime_ns


class WatchedLog:
    """A log with its followers. The file is not kept open."""

    def __init__(self, path: Path) -> None:
        self.watchers = 0
        self._path = path
        self._snapshot = _snapshot(path)
        self._finished: bool | None = None
        self._chunks: dict[int, Chunk] = {}
        self._waiting: set[asyncio.Future[None]] = set()

    def chunk(self, after: int) -> Chunk | None:
        """Return the chunk after an id, if any; the latest are cached for other followers."""
        if after >= self._snapshot[0]:
            return None
        chunk = self._chunks.pop(after, None) or self._read(after)
        if chunk is not None:
            self._chunks[after] = chunk
            size = sum(len(cached.frames) for cached in self._chunks.values())
            while len(self._chunks) > _CACHED_CHUNKS or (size > _CACHED_BYTES and len(self._chunks) > 1):
                size -= len(self._chunks.pop(next(iter(self._chunks))).frames)
        return chunk

    def _read(self, after: int) -> Chunk | None:
        events = read_events(self._path, after, _CHUNK_BYTES)
        if not events:
            return None
        frames = [found for id_, line in events if (found := frame(id_, line))]
        terminal = bool(frames) and frames[-1][0] in TERMINAL_TYPES
        return Chunk(b"".join(data for _, data in frames), events[-1][0], terminal)

    def finished(self) -> bool:
        """Return whether the log was complete at the last check."""
        if self._finished is None:
            self._finished = is_finished(self._path)
        return self._finished

    def refresh(self) -> None:
        """Check the file, and wake the followers if it has changed."""
        snapshot = _snapshot(self._path)
        if snapshot != self._snapshot:
            if snapshot[0] < self._snapshot[0] or snapshot[1] != self._snapshot[1]:
                self._chunks.clear()  # the file was replaced
            self._snapshot = snapshot
            self._finished = None
            self.wake()

    def wake(self) -> None:
        for waiting in self._waiting:
            _resolve(waiting)

    async def wait_for_change(self, timeout: float) -> None:
        """Wait until the file changes after the last check, or for `timeout` seconds."""
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(timeout, _resolve, waiting)
        self._waiting.add(waiting)
        try:
            await waiting
        finally:
            timer.cancel()
            self._waiting.remove(waiting)


class LogWatcher:
    """All logs that have followers, checked at each notification."""

    def __init__(self, notifier: LogNotifier) -> None:
        self._notifier = notifier
        self._logs: dict[Path, WatchedLog] = {}
        notifier.on_notify = self._refresh

    @property
    def watched(self) -> int:
        return len(self._logs)

    async def follow(self, path: Path, after: int, *, over: bool, greeting: bytes = b"") -> AsyncGenerator[bytes, None]:
        """Yield the log after an id as frames until its terminal event or the server's shutdown.

        `over`: the run has ended, even if a damaged log has no terminal event. `greeting` is sent
        first.
        """
        if greeting:
            yield greeting
        ping_at = time.monotonic() + PING_SECONDS
        with self._watching(path) as log:
            while not self._notifier.closed:
                finished = over or log.finished()
                if finished:
                    log.refresh()  # after the question, so that everything written before it will be read
                chunk = log.chunk(after)
                if chunk is None and finished:
                    yield END
                    return
                if chunk is not None:
                    after = chunk.end
                    for start in range(0, len(chunk.frames), _SEND_BYTES):
                        yield chunk.frames[start : start + _SEND_BYTES]
                    if chunk.terminal:
                        yield END
                        return
                    ping_at = time.monotonic() + PING_SECONDS
                    await asyncio.sleep(0)  # let other followers and requests run between the chunks of a backlog
                elif time.monotonic() >= ping_at:
                    yield PING
                    ping_at = time.monotonic() + PING_SECONDS
                else:
                    await log.wait_for_change(ping_at - time.monotonic())

    def _refresh(self) -> None:
        for log in self._logs.values():
            if self._notifier.closed:
                log.wake()
            else:
                log.refresh()

    @contextmanager
    def _watching(self, path: Path) -> Iterator[WatchedLog]:
        log = self._logs.setdefault(path, WatchedLog(path))
        log.watchers += 1
        try:
            yield log
        finally:
            log.watchers -= 1
            if not log.watchers:
                del self._logs[path]


def _resolve(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
