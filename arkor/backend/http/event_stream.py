"""Streamed responses that release what they hold, and how many event streams a user may have."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextlib import aclosing, closing

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from arkor.backend.http.errors import RETRY_SOON, ApiError
from arkor.protocol.accounts import User
from arkor.settings import max_streams


class EventStreamResponse(StreamingResponse):
    """Frames of a generator, which is closed when the response ends; `on_close` runs after that."""

    media_type = "text/event-stream"

    def __init__(self, frames: AsyncGenerator[bytes, None], on_close: Callable[[], Awaitable[None] | None]) -> None:
        super().__init__(frames, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._frames = frames
        self._on_close = on_close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            closing = self._on_close()
            if closing is not None:
                await closing

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self._frames):
            await super().stream_response(send)


class FileStreamResponse(StreamingResponse):
    """The chunks of a generator, which is closed when the response ends.

    Without this, its files stay open after a client that leaves, until it is garbage-collected.
    """

    def __init__(self, chunks: Generator[bytes, None, None], media_type: str, headers: Mapping[str, str]) -> None:
        super().__init__(chunks, media_type=media_type, headers=headers)
        self._chunks = chunks

    async def stream_response(self, send: Send) -> None:
        with closing(self._chunks):
            await super().stream_response(send)


def open_stream(streams: Counter[str], user: User) -> Callable[[], None]:
    """Count one more open stream of the user; return the function that ends it. Raises a 429."""
    if streams[user.id] >= max_streams():
        problem = f"You have {streams[user.id]} event streams open, the most that are allowed."
        raise ApiError(429, problem, "too_many_streams", remedy="Close one.", headers=RETRY_SOON)
    streams[user.id] += 1

    def close_stream() -> None:
        streams[user.id] -= 1
        if not streams[user.id]:
            del streams[user.id]

    return close_stream
