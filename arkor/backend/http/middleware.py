"""Checks of every request before the application gets it: host, origin and size of the head.

A page of another site can have a browser send requests to this server: under a host name of its own
that resolves to this machine, or by a form. It has no token, but signing in needs none. So on
loopback the `Host` must be a name of this machine, and an `Origin` must be the server itself.
"""

from __future__ import annotations

import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from arkor.backend.http.connection import HEAD_LIMIT
from arkor.backend.http.errors import ApiError, error_response
from arkor.protocol.validation import is_loopback


class ConcurrencyMiddleware:
    """Rejects requests that fail the checks, and counts those in progress."""

    def __init__(self, app: ASGIApp, *, loopback_only: bool) -> None:
        self._app = app
        self._loopback_only = loopback_only
        self._in_flight = 0
        self._last_finished_at = time.monotonic()

    def idle_since(self) -> float | None:
        """Return the `time.monotonic()` of the last request's end, None while there is one."""
        return None if self._in_flight else self._last_finished_at

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        self._in_flight += 1
        try:
            rejection = self._rejection(scope)
            app = error_response(scope["path"], rejection) if rejection else self._app
            return await app(scope, receive, send)
        finally:
            self._in_flight -= 1
            self._last_finished_at = time.monotonic()

    def _rejection(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        fields = sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        if len(scope["raw_path"]) + len(scope["query_string"]) + fields > HEAD_LIMIT:
            return ApiError(431, f"The head of the request is longer than {HEAD_LIMIT} bytes.", "too_large")
        host = headers.get("host", "")
        if self._loopback_only and not is_loopback(_host_name(host)):
            return ApiError(403, "This backend accepts requests to localhost only.", "bad_host")
        if not all(_is_same_origin(origin, host) for origin in headers.getlist("origin")):
            return ApiError(403, "This backend does not accept requests from pages of other sites.", "bad_origin")
        return None


def _host_name(host: str) -> str:
    """Return the name in a `Host` header without its port, empty if it is malformed."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_same_origin(origin: str, host: str) -> bool:
    scheme, _, netloc = origin.partition("://")
    return scheme in ("http", "https") and netloc.lower() == host.lower()
