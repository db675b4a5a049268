"""Time and size limits of one connection, with errors in the shape of all others.

uvicorn limits the size of a head (`h11_max_incomplete_event_size`) and closes idle connections
(`timeout_keep_alive`). Three limits are not among its options and are added here: the time that a
head may take, so that a client that sends a byte now and then cannot hold a connection; the time
that the rest of a body may take once its response is sent; and a limit on open connections that
applies before a request has arrived (`limit_concurrency` answers requests alone, and in plain
text). How fast a body must arrive is checked where it is read (`body.py`), which excludes the
reader's own time.

Of uvicorn's protocol, `conn`, `cycle` and `flow` are used, which it does not document.
"""

from __future__ import annotations

import asyncio
import http
import resource
import sys
from collections.abc import Mapping
from contextlib import suppress

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from arkor.backend.http.errors import RETRY_SOON
from arkor.protocol.codec import dumps

#: How long the head of a request may take to arrive, in seconds.
HEAD_SECONDS = 15.0

#: The maximum size of a request's head, and of the data between two chunks of a body, in bytes.
HEAD_LIMIT = 32 * 1024

#: The maximum number of open connections; each event stream holds one.
MAX_CONNECTIONS = 1000

#: How long a rejected connection stays open after its error, in seconds: closing it at once, with
#: data of the client still unread, would reset it before the client has read the error.
LINGER_SECONDS = 1.0


def raise_open_file_limit() -> None:
    """Raise the limit on open files to the server's needs, as far as the system permits."""
    wanted = 2 * MAX_CONNECTIONS + 500
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):
            new_limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (new_limit, hard))


class HttpConnection(H11Protocol):
    """uvicorn's HTTP/1.1 connection with these limits."""

    _timer: asyncio.TimerHandle | None = None
    _rejected = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            problem = f"There are {MAX_CONNECTIONS} connections already; try again in a moment."
            self._reject(503, problem, "busy", RETRY_SOON)
        else:
            self._start_timer()

    def data_received(self, data: bytes) -> None:
        if self._rejected:
            return
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_timer()
        else:
            self._start_timer()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - h11's exception is more precise
        """Reject what h11 cannot parse; uvicorn calls this in its exception handler."""
        error = sys.exc_info()[1]
        if isinstance(error, h11.RemoteProtocolError) and error.error_status_hint == 431:
            self._reject(431, f"The head of the request is longer than {HEAD_LIMIT} bytes.", "too_large")
        else:
            self._reject(400, f"The request is not valid HTTP ({error}).", "invalid_http")

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(HEAD_SECONDS, self._on_timeout)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timeout(self) -> None:
        self._timer = None
        head_begun = self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]
        if head_begun:
            self._reject(408, f"The head of the request did not arrive within {HEAD_SECONDS:g} seconds.", "too_slow")
        else:
            self.transport.close()

    def _reject(self, status: int, problem: str, code: str, headers: Mapping[str, str] | None = None) -> None:
        """Send an error, unless a response has begun, and close the connection."""
        self._stop_timer()
        self._rejected = True
        if self.cycle is not None and not self.cycle.response_complete:  # the application is still at work
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        body = dumps({"error": problem, "code": code}).encode()
        fields = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
        added = [(name.encode(), value.encode()) for name, value in {**fields, **(headers or {})}.items()]
        reason = http.HTTPStatus(status).phrase.encode()
        head = h11.Response(status_code=status, headers=self.server_state.default_headers + added, reason=reason)
        for event in (head, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        with suppress(OSError):  # the client may have closed its end already
            self.transport.write_eof()
        self.flow.resume_reading()
        self._timer = self.loop.call_later(LINGER_SECONDS, self.transport.close)
