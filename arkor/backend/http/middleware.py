"""Who stands before the application: which names and pages lead here, how long a request's head may be, who is inside.

A page of another site can have a browser call us: under a name of its own that was made to point here, or by a form
that it sends here. It holds no token, but signing in needs none. So on loopback the name must be this machine's, and a
call that comes from a page must come from one of ours.
"""

from __future__ import annotations

import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from arkor.backend.http.connection import HEAD_LIMIT
from arkor.backend.http.peer import is_loopback
from arkor.backend.http.requests import api_error


class ConcurrencyMiddleware:
    """Lets in, or says why not; knows how long it has been quiet."""

    def __init__(self, app: ASGIApp, *, loopback_only: bool) -> None:
        self._app = app
        self._loopback_only = loopback_only
        self._in_flight = 0
        self._last_finished_at = time.monotonic()

    def idle_since(self) -> float | None:
        """The `time.monotonic()` at which the last request or stream ended; None while there is one."""
        return None if self._in_flight else self._last_finished_at

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        self._in_flight += 1
        try:
            rejection = self._rejection(scope)
            return await (rejection or self._app)(scope, receive, send)
        finally:
            self._in_flight -= 1
            self._last_finished_at = time.monotonic()

    def _rejection(self, scope: Scope) -> ASGIApp | None:
        headers = Headers(scope=scope)
        if _header_bytes(scope) > HEAD_LIMIT:
            return api_error(431, f"The head of the request is longer than {HEAD_LIMIT} bytes.", "too_large")
        host = headers.get("host", "")
        if self._loopback_only and not is_loopback(_host_name(host)):
            return api_error(403, "This backend answers to localhost alone; call it by that name.", "bad_host")
        if not all(_is_same_origin(origin, host) for origin in headers.getlist("origin")):
            return api_error(403, "This backend takes no calls from pages of other sites.", "bad_origin")
        return None


def _header_bytes(scope: Scope) -> int:
    """How many bytes the head of a request has."""
    line = len(scope["raw_path"]) + len(scope["query_string"])
    return line + sum(len(name) + len(value) + 4 for name, value in scope["headers"])


def _host_name(host: str) -> str:
    """The name in a `Host` header, without its port; empty when it is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_same_origin(origin: str, host: str) -> bool:
    """Whether the page's origin is the very host and port that it calls."""
    scheme, _, netloc = origin.partition("://")
    return scheme in ("http", "https") and netloc.lower() == host.lower()
