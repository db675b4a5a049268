"""An answer of a model → the browser; ended when the browser goes away, before its first word, too."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

import requests
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from arkor.client.plug import Plug
from arkor.studio.relay import RelayedStream

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
