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
from arkor.backend.runs.log_notifier import Bell
from arkor.backend.runs.sse import END, PING, frame
from arkor.protocol.events import TERMINAL_TYPES

PING_SECONDS = 15.0

_PIECE_BYTES = 65536
_PART_BYTES = 2 * _PIECE_BYTES
_KEPT_PIECES, _KEPT_BYTES = 16, 4 * 1024 * 1024
_AT_ONCE = 4


@frozen
class Piece:
    """Some of a log as it goes out: its frames, the id to go on behind, whether the run's end is in it."""

    frames: bytes
    end: int
    terminal: bool


@frozen
class Look:
    """How a log is at one look: bytes (-1 when it is not there), when it was written, which file it is."""

    size: int
    written_at: int
    file: int


class WatchedLog:
    """One log, for all who watch it. No file is kept open."""

    def __init__(self, path: Path) -> None:
        self.watchers = 0
        self._path = path
        self._seen = _look_at(path)
        self._finished: bool | None = None
        self._pieces: dict[int, Piece] = {}
        self._waiting: set[asyncio.Future[None]] = set()

    def piece(self, after: int) -> Piece | None:
        """What comes next behind the id `after`; None when there was nothing at the last look.

        The latest pieces are kept: most watchers are at the end, or began at the same time.
        """
        if after >= self._seen.size:
            return None
        piece = self._pieces.pop(after, None) or self._read(after)
        if piece is not None:
            self._pieces[after] = piece
            self._forget()
        return piece

    def _forget(self) -> None:
        """All but the latest pieces: few, and not too large together."""
        size = sum(len(piece.frames) for piece in self._pieces.values())
        while len(self._pieces) > _KEPT_PIECES or (size > _KEPT_BYTES and len(self._pieces) > 1):
            size -= len(self._pieces.pop(next(iter(self._pieces))).frames)

    def _read(self, after: int) -> Piece | None:
        events = read_events(self._path, after, _PIECE_BYTES)
        if not events:
            return None
        framed = [whole for id_, _, line in events if (whole := frame(id_, line))]
        terminal = bool(framed) and framed[-1][0] in TERMINAL_TYPES
        return Piece(b"".join([data for _, data in framed]), events[-1][0], terminal)

    def finished(self) -> bool:
        """Whether nothing more will come, as of the last look."""
        if self._finished is None:
            self._finished = is_finished(self._path)
        return self._finished

    def look(self) -> None:
        """Wake those who wait if the log is not as it was."""
        seen = _look_at(self._path)
        if seen != self._seen:
            if seen.size < self._seen.size or seen.file != self._seen.file:
                self._pieces.clear()  # not the log that it was
            self._seen = seen
            self._finished = None
            self.wake()

    def wake(self) -> None:
        for waiting in self._waiting:
            _release(waiting)

    async def change(self, longest: float) -> None:
        """Until the log is not as it was at the last look, or `longest` seconds."""
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(longest, _release, waiting)
        self._waiting.add(waiting)
        try:
            await waiting
        finally:
            timer.cancel()
            self._waiting.remove(waiting)


class Turns:
    """Those who have much to say speak a few at a time, so that all others come in between, however many they are."""

    def __init__(self) -> None:
        self._queue: deque[asyncio.Future[None]] = deque()

    async def take(self) -> None:
        loop = asyncio.get_running_loop()
        if not self._queue:
            loop.call_soon(self._give)
        turn: asyncio.Future[None] = loop.create_future()
        self._queue.append(turn)
        await turn

    def _give(self) -> None:
        for _ in range(min(_AT_ONCE, len(self._queue))):
            _release(self._queue.popleft())
        if self._queue:
            asyncio.get_running_loop().call_soon(self._give)


class Lookout:
    """Every log that somebody watches, looked at whenever the bell rings."""

    def __init__(self, bell: Bell) -> None:
        self._bell = bell
        self._logs: dict[Path, WatchedLog] = {}
        self._turns = Turns()
        bell.on_ring = self._look

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
            while not self._bell.closed:
                finished = over or log.finished()
                if finished:
                    log.look()  # after asking: what was written up to here will be read
                piece = log.piece(after)
                if piece is None and finished:
                    yield END
                    return
                if piece is not None:
                    after = piece.end
                    for part in _parts(piece.frames):
                        yield part
                    if piece.terminal:
                        yield END
                        return
                    ping_at = time.monotonic() + PING_SECONDS
                    if len(piece.frames) > _PIECE_BYTES // 2:
                        await self._turns.take()
                elif time.monotonic() >= ping_at:
                    yield PING
                    ping_at = time.monotonic() + PING_SECONDS
                else:
                    await log.change(ping_at - time.monotonic())

    def _look(self) -> None:
        for log in self._logs.values():
            if self._bell.closed:
                log.wake()
            else:
                log.look()

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


def _parts(frames: bytes) -> Iterator[bytes]:
    """A long piece in parts, so that no more than one of them waits for a reader that is slow to take it."""
    return (frames[start : start + _PART_BYTES] for start in range(0, len(frames), _PART_BYTES))


def _release(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


def _look_at(path: Path) -> Look:
    try:
        status = path.stat()
    except OSError:
        return Look(-1, 0, 0)
    return Look(status.st_size, status.st_mtime_ns, status.st_ino)
