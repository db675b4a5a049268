"""Streams of the backend, forwarded to the browser unchanged as they arrive.

The calls of the SDK block, so a thread reads. When the browser disconnects, the connection to the backend is closed,
also before the first byte of an answer has arrived.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import Any
from weakref import WeakSet

import requests
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Send

from arkor.client.http.cancellation import Plug

_CHUNK_BYTES = 64 * 1024
_CHUNKS_AHEAD = 16  # a browser that is slow to take them lets the backend wait

#: A glance at a stream ends after so much silence, and after so long; in seconds.
_SILENCE_SECONDS, _GLANCE_SECONDS = 0.5, 3.0

#: Set when Studio stops: nothing is streamed any more.
stopping = threading.Event()
_readers: WeakSet[_Reader] = WeakSet()


def end_streams() -> None:
    """End every stream as if it had come to its end, so that nobody holds up Studio. On the loop's thread."""
    stopping.set()
    for reader in list(_readers):
        reader.finish()


class RelayedStream(StreamingResponse):
    """An answer of the backend, handed on.

    `glance` is for what need not be followed: it ends when nothing has come for half a second, and after three.
    """

    def __init__(self, upstream: requests.Response, plug: Plug, *, glance: bool = False) -> None:
        kind = upstream.headers.get("Content-Type") or "application/octet-stream"
        self._upstream, self._plug = upstream, plug
        self._source = _relayed(upstream, plug, glance)
        super().__init__(self._source, headers={"Cache-Control": "no-store", "Content-Type": kind})

    async def stream_response(self, send: Send) -> None:
        try:
            async with aclosing(self._source):
                await super().stream_response(send)
        finally:
            self._plug.pull()
            self._upstream.close()


def open_relay(call: Callable[[], requests.Response], *, glance: bool = False) -> RelayedStream:
    """Make the call, on a thread that may wait, and hand its answer on. Raises what the call raises."""
    plug = Plug()
    with plug:
        upstream = call()
    return RelayedStream(upstream, plug, glance=glance)


async def _relayed(upstream: requests.Response, plug: Plug, glance: bool) -> AsyncGenerator[bytes, None]:
    until = time.monotonic() + _GLANCE_SECONDS if glance else math.inf
    reader = _Reader(upstream, plug)
    reader.start()
    _readers.add(reader)
    try:
        while chunk := await asyncio.wait_for(reader.next(), _SILENCE_SECONDS if glance else None):
            yield chunk
            if time.monotonic() > until:
                return
    except asyncio.TimeoutError:
        pass
    finally:
        reader.leave()


class _Reader:
    """Reads an answer on a thread of its own, a few chunks ahead of whoever takes them; b"" is the end."""

    def __init__(self, upstream: requests.Response, plug: Plug) -> None:
        self._upstream, self._plug = upstream, plug
        self._loop = asyncio.get_running_loop()
        self._chunks: asyncio.Queue[bytes] = asyncio.Queue()
        self._room = threading.Semaphore(_CHUNKS_AHEAD)
        self._left = False
        self._thread = threading.Thread(target=self._run, name="arkor-studio-relay", daemon=True)

    def start(self) -> None:
        self._thread.start()

    async def next(self) -> bytes:
        chunk = await self._chunks.get()
        self._room.release()
        return chunk

    def finish(self) -> None:
        """No more than what was read already."""
        self._chunks.put_nowait(b"")

    def leave(self) -> None:
        """The thread ends by itself: its connection is shut down, and it need not wait for room."""
        self._left = True
        self._room.release()

    def _run(self) -> None:
        # A stream that breaks ends; the browser goes on behind its last event.
        with self._upstream, suppress(Exception):
            while not self._left and (chunk := _read(self._upstream.raw)):
                self._room.acquire()
                self._hand_on(chunk)
            if not self._left:
                self._plug.release()  # read to its end, the connection is somebody else's from now on
        self._hand_on(b"")

    def _hand_on(self, chunk: bytes) -> None:
        with suppress(RuntimeError):  # the loop is closed: Studio has stopped
            self._loop.call_soon_threadsafe(self._chunks.put_nowait, chunk)


def _read(raw: Any) -> bytes:
    chunk: bytes = raw.read1(_CHUNK_BYTES, decode_content=True)
    return chunk


#: What is logged for a browser that has gone; nobody reads it.
_GONE = 499


async def open_answer(request: Request, call: Callable[[], requests.Response]) -> Response:
    """Make the call on a thread, and hand its answer on; raises what the call raises.

    The body of the request must have been read. A model may need long before its first word: whoever presses stop
    meanwhile is not made to wait, and neither is the backend.
    """
    plug = Plug()
    calling = asyncio.ensure_future(run_in_threadpool(_plugged, plug, call))
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({calling, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if calling.done():
            return RelayedStream(calling.result(), plug)
        plug.pull()
        with suppress(Exception):  # whatever came of it, nobody hears it
            (await calling).close()
        return Response(status_code=_GONE)
    finally:
        leaving.cancel()


def _plugged(plug: Plug, call: Callable[[], requests.Response]) -> requests.Response:
    with plug:
        return call()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
