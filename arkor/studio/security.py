"""Who may talk to Studio: `Host`, `Origin` and the token of this launch; and what the answers forbid a browser.

Other people may have an account on this machine, and other pages are open in the same browser. A cookie would not do:
it goes to every port of a host, so also to a server of somebody else's. The token therefore travels in a header, which
only our own script can set; it is handed to that script behind the `#` of the first address, which no browser sends
or logs, and kept where only this origin can read it. Who has no token gets the empty shell of the page, whatever is
asked for. Streams of events may have it in the query, because an `EventSource` cannot set headers.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping

from attrs import field, frozen
from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from arkor.studio.listener import ListenAddress

TOKEN_HEADER = "x-arkor-studio-token"  # noqa: S105 - its name, not its value
TOKEN_PARAMETER = "studioToken"  # noqa: S105 - likewise

#: Only these may carry the token in their query.
STREAMS = "/streams/"
#: What a page is made of; there is nothing of anybody's in it.
STATIC = "/static/"
#: Not pages, so that whoever asks without the token hears so instead of getting a page.
NO_PAGES = ("/parts/", "/actions/", STREAMS)

_READING = frozenset({"GET", "HEAD"})

HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self'",
            "connect-src 'self'",
            "form-action 'self'",
            "base-uri 'none'",
            "frame-ancestors 'none'",
        )
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


def new_token() -> str:
    """A token for one launch."""
    return secrets.token_urlsafe(32)


@frozen
class SecurityMiddleware:
    """The application, behind the rules. `shell` is the page without anything in it."""

    app: ASGIApp
    address: ListenAddress
    token: str = field(repr=False)
    shell: str = field(repr=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        answer = self.rejection(Request(scope)) or self.app
        return await answer(scope, receive, _with_headers(send))

    def rejection(self, request: Request) -> Response | None:
        """What is answered instead, if the application is not to see this request."""
        if request.headers.get("host", "").lower() not in self.address.hosts:
            return _error_response(403, f"Studio answers to {self.address.url} alone.")
        if request.headers.get("origin", self.address.url.rstrip("/")) not in self.address.origins:
            return _error_response(403, "Studio takes no calls from other pages.")
        path = request.url.path
        if path.startswith(STATIC) or self._is_authorized(path, request.headers, request.query_params):
            return None
        if request.method in _READING and not path.startswith(NO_PAGES) and TOKEN_HEADER not in request.headers:
            return Response(self.shell, media_type="text/html", headers={"Cache-Control": "no-store"})
        return _error_response(
            401, "This needs the token of this launch; open the address that `arkor dev` has printed."
        )

    def _is_authorized(self, path: str, headers: Headers, query: QueryParams) -> bool:
        given = headers.get(TOKEN_HEADER)
        if given is None and path.startswith(STREAMS):
            given = query.get(TOKEN_PARAMETER)
        return given is not None and hmac.compare_digest(given.encode(), self.token.encode())


def _error_response(status: int, sentence: str) -> Response:
    return JSONResponse({"error": sentence}, status)


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            headers.setdefault("Cache-Control", "no-store")
        await send(message)

    return sending
