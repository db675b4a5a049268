"""A local HTTP server that receives the redirect of an OAuth login and shows one small page."""

from __future__ import annotations

import hmac
import html
import queue
import re
import socketserver
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from attrs import field, frozen

from arkor.errors import CredentialsError
from arkor.formatting import one_line

#: Seconds for a connection to send its request; browsers open some that they never use.
REQUEST_SECONDS = 10.0

_PATH = "/callback"
_TRY_AGAIN = "try again: arkor login --oauth"
_ERROR_CODE = re.compile(r"[a-z_]{1,40}")
_MAX_REASON_LENGTH = 200

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>arkor</title>
<style>body {{ font: 1.1rem/1.5 system-ui, sans-serif; margin: 20vh auto 0; max-width: 32rem; padding: 0 1rem }}</style>
</head>
<body>
<p>{text}</p>
</body>
</html>
"""
_HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Connection": "close",
}


@frozen
class AuthorizationResponse:
    """What the redirect contains: a code, or a problem instead."""

    code: str = field(default="", repr=False)
    problem: str | None = None


def parse_authorization_response(query: str, state: str) -> AuthorizationResponse:
    """Parse the query of a redirect; nothing else in it is used unless its `state` matches."""
    given = {name: values[0] for name, values in parse_qs(query).items() if len(values) == 1}
    if not hmac.compare_digest(given.get("state", "").encode("utf-8", "replace"), state.encode()):
        return AuthorizationResponse(problem="the redirect belongs to another login (its state does not match)")
    if "error" in given:
        code, detail = given["error"], one_line(given.get("error_description", ""), _MAX_REASON_LENGTH)
        reason = f"the authorization server answered {code if _ERROR_CODE.fullmatch(code) else 'an unknown error'}"
        reason = "access was denied" if code == "access_denied" else reason
        return AuthorizationResponse(problem=f"{reason} ({detail})" if detail else reason)
    if not given.get("code"):
        return AuthorizationResponse(problem="the redirect contains no code")
    return AuthorizationResponse(given["code"])


class CallbackServer:
    """Waits for a redirect on one of the `ports`; raises `CredentialsError` if all are in use."""

    def __init__(self, ports: Sequence[int], state: str) -> None:
        self._responses: queue.SimpleQueue[AuthorizationResponse] = queue.SimpleQueue()
        self._server = _listen(ports, _handler(state, self._responses))
        self.port = int(self._server.server_port)

    @property
    def redirect_uri(self) -> str:
        return f"http://127.0.0.1:{self.port}{_PATH}"

    def __enter__(self) -> CallbackServer:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def wait(self, seconds: float) -> str:
        """Return the code; raise `CredentialsError` after an error or a timeout."""
        try:
            response = self._responses.get(timeout=seconds)
        except queue.Empty:
            problem = f"the browser login was not completed within {seconds / 60:.3g} minutes"
            raise CredentialsError(problem, remedy=_TRY_AGAIN) from None
        if response.problem:
            raise CredentialsError(f"you are not signed in: {response.problem}", remedy=_TRY_AGAIN)
        return response.code


def _handler(state: str, responses: queue.SimpleQueue[AuthorizationResponse]) -> type[BaseHTTPRequestHandler]:
    first = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        timeout = REQUEST_SECONDS
        server_version, sys_version = "arkor", ""

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            if url.path != _PATH or not first.acquire(blocking=False):
                self._show(404, "Page not found.")
                return
            response = parse_authorization_response(url.query, state)
            try:
                if response.problem:
                    self._show(400, f"Login failed: {response.problem}. You can close this page; see the terminal.")
                else:
                    self._show(200, "You are signed in. You can close this page.")
            finally:
                responses.put(response)

        def _show(self, status: int, text: str) -> None:
            page = _PAGE.format(text=html.escape(text)).encode()
            self.send_response(status)
            for name, value in {**_HEADERS, "Content-Length": str(len(page))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *args: object) -> None:
            """Log nothing, because the request line contains the code."""

    return Handler


class _CallbackHTTPServer(ThreadingHTTPServer):
    """Looks up no host name of this machine, and ignores errors of its clients."""

    daemon_threads = True

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment] # as HTTPServer does

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore browsers that disconnect early."""


def _listen(ports: Sequence[int], handler: type[BaseHTTPRequestHandler]) -> _CallbackHTTPServer:
    for port in ports:
        try:
            return _CallbackHTTPServer(("127.0.0.1", port), handler)
        except OSError:  # noqa: PERF203 - a few at most
            continue
    raise CredentialsError(
        f"the login needs one of the ports {', '.join(map(str, ports))} of this machine, but all of them are in use",
        remedy="stop what listens there, perhaps another login, and try again",
    )
