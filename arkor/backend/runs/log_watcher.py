"""Following a run's log: what was written as frames, then what is being written, until the run ends.

A log is looked at and read once for all who watch it and are at the same place in it. What a frame looks like is in
`sse.py`, who tells that a log has grown in `log_notifier.py`; who may watch is for the routes to say.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
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
_SEND_BYTES = 2 * _CHUNK_BYTES
_CACHED_CHUNKS, _CACHED_BYTES = 16, 4 * 1024 * 1024
_MAX_CONCURRENT = 4


@frozen
class Chunk:
    """Some of a log as it goes out: its frames, the id to go on behind, whether the run's end is in it."""

    frames: bytes
    end: int
    terminal: bool


@frozen
class Snapshot:
    """How a log is at one look: bytes (-1 when it is not there), when it was written, which file it is."""

    size: int
    written_at: int
    file: int


class WatchedLog:
    """One log, for all who watch it. No file is kept open."""

    def __init__(self, path: Path) -> None:
        self.watchers = 0
        self._path = path
        self._snapshot = _snapshot(path)
        self._finished: bool | None = None
        self._chunks: dict[int, Chunk] = {}
        self._waiting: set[asyncio.Future[None]] = set()

    def chunk(self, after: int) -> Chunk | None:
        """What comes next behind the id `after`; None when there was nothing at the last look.

        The latest pieces are kept: most watchers are at the end, or began at the same time.
        """
        if after >= self._snapshot.size:
            return None
        chunk = self._chunks.pop(after, None) or self._read(after)
        if chunk is not None:
            self._chunks[after] = chunk
            self._evict()
        return chunk

    def _evict(self) -> None:
        """All but the latest pieces: few, and not too large together."""
        size = sum(len(chunk.frames) for chunk in self._chunks.values())
        while len(self._chunks) > _CACHED_CHUNKS or (size > _CACHED_BYTES and len(self._chunks) > 1):
            size -= len(self._chunks.pop(next(iter(self._chunks))).frames)

    def _read(self, after: int) -> Chunk | None:
        events = read_events(self._path, after, _CHUNK_BYTES)
        if not events:
            return None
        framed = [whole for id_, _, line in events if (whole := frame(id_, line))]
        terminal = bool(framed) and framed[-1][0] in TERMINAL_TYPES
        return Chunk(b"".join([data for _, data in framed]), events[-1][0], terminal)

    def finished(self) -> bool:
        """Whether nothing more will come, as of the last look."""
        if self._finished is None:
            self._finished = is_finished(self._path)
        return self._finished

    def refresh(self) -> None:
        """Wake those who wait if the log is not as it was."""
        snapshot = _snapshot(self._path)
        if snapshot != self._snapshot:
            if snapshot.size < self._snapshot.size or snapshot.file != self._snapshot.file:
                self._chunks.clear()  # not the log that it was
            self._snapshot = snapshot
            self._finished = None
            self.wake()

    def wake(self) -> None:
        for waiting in self._waiting:
            _resolve(waiting)

    async def wait_for_change(self, timeout: float) -> None:
        """Until the log is not as it was at the last look, or `timeout` seconds."""
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(timeout, _resolve, waiting)
        self._waiting.add(waiting)
        try:
            await waiting
        finally:
            timer.cancel()
            self._waiting.remove(waiting)


class FairScheduler:
    """Those who have much to say speak a few at a time, so that all others come in between, however many they are."""

    def __init__(self) -> None:
        self._queue: deque[asyncio.Future[None]] = deque()

    async def wait_turn(self) -> None:
        loop = asyncio.get_running_loop()
        if not self._queue:
            loop.call_soon(self._grant_next)
        turn: asyncio.Future[None] = loop.create_future()
        self._queue.append(turn)
        await turn

    def _grant_next(self) -> None:
        for _ in range(min(_MAX_CONCURRENT, len(self._queue))):
            _resolve(self._queue.popleft())
        if self._queue:
            asyncio.get_running_loop().call_soon(self._grant_next)


class LogWatcher:
    """Every log that somebody watches, looked at whenever the bell rings."""

    def __init__(self, notifier: LogNotifier) -> None:
        self._notifier = notifier
        self._logs: dict[Path, WatchedLog] = {}
        self._scheduler = FairScheduler()
        notifier.on_notify = self._refresh

    @property
    def watched(self) -> int:
        """How many logs somebody watches."""
        return len(self._logs)

    async def follow(self, path: Path, after: int, *, over: bool, greeting: bytes = b"") -> AsyncGenerator[bytes, None]:
        """The log behind `after` as frames, many in one piece, until its terminal event or the server's end.

        `over`: the run is, even if its log should be damaged and not say so. `greeting` comes first.
        """
        if greeting:
            yield greeting
        ping_at = time.monotonic() + PING_SECONDS
        with self._watching(path) as log:
            while not self._notifier.closed:
                finished = over or log.finished()
                if finished:
                    log.refresh()  # after asking: what was written up to here will be read
                chunk = log.chunk(after)
                if chunk is None and finished:
                    yield END
                    return
                if chunk is not None:
                    after = chunk.end
                    for part in _split(chunk.frames):
                        yield part
                    if chunk.terminal:
                        yield END
                        return
                    ping_at = time.monotonic() + PING_SECONDS
                    if len(chunk.frames) > _CHUNK_BYTES // 2:
                        await self._scheduler.wait_turn()
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


def _split(frames: bytes) -> Iterator[bytes]:
    """A long piece in parts, so that no more than one of them waits for a reader that is slow to take it."""
    return (frames[start : start + _SEND_BYTES] for start in range(0, len(frames), _SEND_BYTES))


def _resolve(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


def _snapshot(path: Path) -> Snapshot:
    try:
        status = path.stat()
    except OSError:
        return Snapshot(-1, 0, 0)
    return Snapshot(status.st_size, status.st_mtime_ns, status.st_ino)
