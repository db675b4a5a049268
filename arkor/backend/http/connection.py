"""One connection to the server: how long its client may take over a request, and how much may be in the request's head.

A client that sends a byte now and then would hold a connection for ever. So the head of a request has to be here after
`HEAD_SECONDS`, and whatever of a body comes when the answer has been given is heard out for no longer than that. How
fast a body must come is the business of those who read it (`requests.py`), for they know how long they took themselves.
"""

from __future__ import annotations

import asyncio
import http
import resource
import sys
from contextlib import suppress
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from arkor.protocol.codec import dumps
from arkor.settings import VERSION

#: How long the head of a request may take to come, in seconds.
HEAD_SECONDS = 15.0

#: How large the head of a request may be, in bytes; the same goes for what is between two pieces of a body.
HEAD_LIMIT = 32 * 1024

#: How many connections are open at once; those who wait for events hold one each.
MAX_CONNECTIONS = 1000

#: How long a client whose call was no HTTP is listened to, in seconds, so that it can read what we have to say.
LINGER_SECONDS = 1.0

_SENTENCES = {
    400: "This is no valid HTTP: {}.",
    408: "The head of the request did not come within {} seconds.",
    431: "The head of the request is longer than {} bytes.",
    503: "There are {} connections already; try again in a moment.",
}


def raise_open_file_limit() -> None:
    """As many open files as the connections need, and the rest of the server does, as far as the system lets us."""
    wanted = 2 * MAX_CONNECTIONS + 500
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):
            new_limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (new_limit, hard))


class HttpConnection(H11Protocol):
    """A client's connection, with time limits and with errors in the shape that all others have."""

    _timer: asyncio.TimerHandle | None = None
    _closing = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            self._reject(503, str(MAX_CONNECTIONS), "busy", "Retry-After: 5\r\n")
        else:
            self._timer = self.loop.call_later(HEAD_SECONDS, self._on_timeout)

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._cancel_timer()
        elif self._timer is None:
            self._timer = self.loop.call_later(HEAD_SECONDS, self._on_timeout)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY and self._timer is None:  # we answered before we had heard it all
            self._timer = self.loop.call_later(HEAD_SECONDS, self._on_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timer()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - the parser's own words say more
        """Called while the parser's exception is being handled."""
        error = sys.exc_info()[1]
        if getattr(error, "error_status_hint", 400) == 431:
            self._reject(431, str(HEAD_LIMIT), "too_large")
        else:
            self._reject(400, str(error).rstrip("."), "invalid_http")

    def _on_timeout(self) -> None:
        self._timer = None
        begun = self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]
        if begun:
            self._reject(408, f"{HEAD_SECONDS:g}", "too_slow")
        else:
            self.transport.close()

    def _reject(self, status: int, detail: str, code: str, more: str = "") -> None:
        """Answer without the application and hang up, leaving the client a moment to read it.

        One that has an answer already, or half of it, gets no second one.
        """
        self._cancel_timer()
        self._unset_keepalive_if_required()
        self._closing = True
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.cycle.response_started:
                return self.transport.abort()
        self.transport.write(_raw_response(status, _SENTENCES[status].format(detail), code, more))
        with suppress(OSError):  # the client may have hung up already
            self.transport.write_eof()
        self.flow.resume_reading()
        self._timer = self.loop.call_later(LINGER_SECONDS, self.transport.close)
        return None

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _raw_response(status: int, sentence: str, code: str, more: str) -> bytes:
    body: Any = dumps({"error": sentence, "code": code}).encode()
    head = (
        f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        f"X-Arkor-Version: {VERSION}\r\nConnection: close\r\n{more}\r\n"
    )
    return head.encode() + bytes(body)
