"""Streams of the backend, forwarded to the browser unchanged as they arrive.

The SDK's calls block, so a thread reads. When the browser disconnects, the connection to the
backend is closed too, even before the first byte of a response.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from weakref import WeakSet

import requests
from anyio import CapacityLimiter, to_thread
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Send

from arkor.client.http.cancellation import CancelScope

_CHUNK_BYTES = 64 * 1024
_THREADS = CapacityLimiter(math.inf)  # each stream waits in one, which other requests must not lack

#: A snapshot of a stream ends after a pause, or after a total time; in seconds.
_QUIET_SECONDS, _SNAPSHOT_SECONDS = 0.5, 3.0

#: The status for a browser that has disconnected; it is never sent.
_CLIENT_CLOSED = 499

#: Set when Studio stops; streams end then.
stopping = threading.Event()
_scopes: WeakSet[CancelScope] = WeakSet()


def end_streams() -> None:
    """End every stream, so that none delays the shutdown."""
    stopping.set()
    for scope in list(_scopes):
        scope.cancel()


class ProxiedStream(StreamingResponse):
    """A response of the backend, forwarded; a `snapshot` ends once no more data is waiting."""

    def __init__(self, upstream: requests.Response, scope: CancelScope, *, snapshot: bool = False) -> None:
        content_type = upstream.headers.get("Content-Type") or "application/octet-stream"
        self._upstream, self._scope = upstream, scope
        self._source = _proxy_chunks(upstream, scope, snapshot)
        super().__init__(self._source, headers={"Cache-Control": "no-store", "Content-Type": content_type})

    async def stream_response(self, send: Send) -> None:
        try:
            async with aclosing(self._source):
                await super().stream_response(send)
        finally:
            self._scope.cancel()
            self._upstream.close()


def open_proxy(call: Callable[[], requests.Response], *, snapshot: bool = False) -> ProxiedStream:
    """Make a blocking call and forward its response. Raises what the call raises."""
    scope = CancelScope()
    return ProxiedStream(_in_scope(scope, call), scope, snapshot=snapshot)


async def _proxy_chunks(upstream: requests.Response, scope: CancelScope, snapshot: bool) -> AsyncGenerator[bytes, None]:
    deadline = time.monotonic() + _SNAPSHOT_SECONDS if snapshot else math.inf
    _scopes.add(scope)

    def read() -> bytes:
        chunk: bytes = upstream.raw.read1(_CHUNK_BYTES, decode_content=True)
        if not chunk:
            scope.release()  # the connection returns to the pool; do not close it
        return chunk

    with suppress(Exception):  # a broken stream just ends; the browser resumes after its last event
        while not stopping.is_set():
            reading = to_thread.run_sync(read, abandon_on_cancel=True, limiter=_THREADS)
            chunk = await asyncio.wait_for(reading, _QUIET_SECONDS if snapshot else None)
            if not chunk:
                return
            yield chunk
            if time.monotonic() > deadline:
                return


async def proxy_answer(request: Request, call: Callable[[], requests.Response]) -> Response:
    """Make a blocking call in a thread and forward its response. Raises what the call raises.

    The body of the request must have been read. If the browser disconnects before the response
    begins, which can take long for a model, the call is cancelled.
    """
    scope = CancelScope()
    request_task = asyncio.ensure_future(run_in_threadpool(_in_scope, scope, call))
    disconnect_task = asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait({request_task, disconnect_task}, return_when=asyncio.FIRST_COMPLETED)
        if request_task.done():
            return ProxiedStream(request_task.result(), scope)
        scope.cancel()
        with suppress(Exception):  # the browser has gone and receives no error
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
