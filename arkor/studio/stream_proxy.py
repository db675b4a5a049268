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

from arkor.client.http.cancellation import CancelScope

_CHUNK_BYTES = 64 * 1024
_CHUNKS_AHEAD = 16  # a browser that is slow to take them lets the backend wait

#: A glance at a stream ends after so much silence, and after so long; in seconds.
_SILENCE_SECONDS, _SNAPSHOT_SECONDS = 0.5, 3.0

#: Set when Studio stops: nothing is streamed any more.
stopping = threading.Event()
_readers: WeakSet[_Reader] = WeakSet()


def end_streams() -> None:
    """End every stream as if it had come to its end, so that nobody holds up Studio. On the loop's thread."""
    stopping.set()
    for reader in list(_readers):
        reader.finish()


class ProxiedStream(StreamingResponse):
    """An answer of the backend, handed on.

    `glance` is for what need not be followed: it ends when nothing has come for half a second, and after three.
    """

    def __init__(self, upstream: requests.Response, scope: CancelScope, *, snapshot: bool = False) -> None:
        kind = upstream.headers.get("Content-Type") or "application/octet-stream"
        self._upstream, self._scope = upstream, scope
        self._source = _proxy_chunks(upstream, scope, snapshot)
        super().__init__(self._source, headers={"Cache-Control": "no-store", "Content-Type": kind})

    async def stream_response(self, send: Send) -> None:
        try:
            async with aclosing(self._source):
                await super().stream_response(send)
        finally:
            self._scope.cancel()
            self._upstream.close()


def open_proxy(call: Callable[[], requests.Response], *, snapshot: bool = False) -> ProxiedStream:
    """Make the call, on a thread that may wait, and hand its answer on. Raises what the call raises."""
    scope = CancelScope()
    with scope:
        upstream = call()
    return ProxiedStream(upstream, scope, snapshot=snapshot)


async def _proxy_chunks(upstream: requests.Response, scope: CancelScope, snapshot: bool) -> AsyncGenerator[bytes, None]:
    deadline = time.monotonic() + _SNAPSHOT_SECONDS if snapshot else math.inf
    reader = _Reader(upstream, scope)
    reader.start()
    _readers.add(reader)
    try:
        while chunk := await asyncio.wait_for(reader.next(), _SILENCE_SECONDS if snapshot else None):
            yield chunk
            if time.monotonic() > deadline:
                return
    except asyncio.TimeoutError:
        pass
    finally:
        reader.close()


class _Reader:
    """Reads an answer on a thread of its own, a few chunks ahead of whoever takes them; b"" is the end."""

    def __init__(self, upstream: requests.Response, scope: CancelScope) -> None:
        self._upstream, self._scope = upstream, scope
        self._loop = asyncio.get_running_loop()
        self._chunks: asyncio.Queue[bytes] = asyncio.Queue()
        self._room = threading.Semaphore(_CHUNKS_AHEAD)
        self._closed = False
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

    def close(self) -> None:
        """The thread ends by itself: its connection is shut down, and it need not wait for room."""
        self._closed = True
        self._room.release()

    def _run(self) -> None:
        # A stream that breaks ends; the browser goes on behind its last event.
        with self._upstream, suppress(Exception):
            while not self._closed and (chunk := _read(self._upstream.raw)):
                self._room.acquire()
                self._put(chunk)
            if not self._closed:
                self._scope.release()  # read to its end, the connection is somebody else's from now on
        self._put(b"")

    def _put(self, chunk: bytes) -> None:
        with suppress(RuntimeError):  # the loop is closed: Studio has stopped
            self._loop.call_soon_threadsafe(self._chunks.put_nowait, chunk)


def _read(raw: Any) -> bytes:
    chunk: bytes = raw.read1(_CHUNK_BYTES, decode_content=True)
    return chunk


#: What is logged for a browser that has gone; nobody reads it.
_CLIENT_CLOSED = 499


async def proxy_answer(request: Request, call: Callable[[], requests.Response]) -> Response:
    """Make the call on a thread, and hand its answer on; raises what the call raises.

    The body of the request must have been read. A model may need long before its first word: whoever presses stop
    meanwhile is not made to wait, and neither is the backend.
    """
    scope = CancelScope()
    request_task = asyncio.ensure_future(run_in_threadpool(_in_scope, scope, call))
    disconnect_task = asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait({request_task, disconnect_task}, return_when=asyncio.FIRST_COMPLETED)
        if request_task.done():
            return ProxiedStream(request_task.result(), scope)
        scope.cancel()
        with suppress(Exception):  # whatever came of it, nobody hears it
            (await request_task).close()
        return Response(status_code=_CLIENT_CLOSED)
    finally:
        disconnect_task.cancel()


def _in_scope(scope: CancelScope, call: Callable[[], requests.Response]) -> requests.Response:
    with scope:
        return call()


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
