"""Access control: the `Host` and `Origin` of a request, the token of this launch, security headers.

Other users may have accounts on this machine, and other pages are open in the same browser. A
cookie would not be safe, because it is sent to every port of a host, including another user's
server. The token is therefore sent in a header, which only our own script can set. The script
receives it in the fragment (`#token=…`) of the first URL, which browsers neither send nor log, and
stores it where only this origin can read it. A request without a token gets the empty frame of the
page, whatever its path. Event streams may carry the token in the query, because an `EventSource`
cannot set headers.
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

HOST = "127.0.0.1"

TOKEN_HEADER = "x-arkor-studio-token"  # noqa: S105 - its name, not its value
TOKEN_PARAMETER = "studioToken"  # noqa: S105 - likewise

#: The paths that accept the token in the query.
STREAMS = "/streams/"
#: The files of the pages, which contain no data.
STATIC = "/static/"
#: Paths that are not pages: without a token they get an error instead of the frame.
NO_PAGES = ("/parts/", "/actions/", STREAMS)

_READING = frozenset({"GET", "HEAD"})

HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


def new_token() -> str:
    return secrets.token_urlsafe(32)


@frozen
class ListenAddress:
    """The port that Studio listens on, and the headers that name it."""

    port: int

    @property
    def hosts(self) -> frozenset[str]:
        """The accepted `Host` headers; no other name that resolves to this machine is."""
        suffix = "" if self.port == 80 else f":{self.port}"  # browsers omit the default port
        return frozenset(f"{name}{suffix}" for name in (HOST, "localhost"))

    @property
    def origins(self) -> frozenset[str]:
        return frozenset(f"http://{host}" for host in self.hosts)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}/"


@frozen
class SecurityMiddleware:
    """Passes authorized requests to the application; `shell` is the frame without any data."""

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
        """Return the response to a request that must not reach the application, else None."""
        if request.headers.get("host", "").lower() not in self.address.hosts:
            return JSONResponse({"error": f"Studio accepts requests to {self.address.url} only."}, 403)
        if request.headers.get("origin", self.address.url.rstrip("/")) not in self.address.origins:
            return JSONResponse({"error": "Studio does not accept requests from other pages."}, 403)
        path = request.url.path
        if path.startswith(STATIC) or self._is_authorized(path, request.headers, request.query_params):
            return None
        if request.method in _READING and not path.startswith(NO_PAGES) and TOKEN_HEADER not in request.headers:
            return Response(self.shell, media_type="text/html", headers={"Cache-Control": "no-store"})
        return JSONResponse(
            {"error": "This needs the token of this launch; open the URL that `arkor dev` has printed."}, 401
        )

    def _is_authorized(self, path: str, headers: Headers, query: QueryParams) -> bool:
        given = headers.get(TOKEN_HEADER)
        if given is None and path.startswith(STREAMS):
            given = query.get(TOKEN_PARAMETER)
        return given is not None and hmac.compare_digest(given.encode(), self.token.encode())


def _with_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            headers.setdefault("Cache-Control", "no-store")
        await send(message)

    return send_with_headers
