"""Where the browser comes back to after a sign-in: a port of this machine, one redirect, one small page.

What is made of the code that comes with it is in `browser_login.py`.
"""

from __future__ import annotations

import hmac
import html
import queue
import re
import socketserver
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import parse_qs, urlsplit

from attrs import field, frozen

from arkor.errors import CredentialsError

#: Seconds for a connection to send its request; browsers open some that they never use.
REQUEST_SECONDS = 10.0

_PATH = "/callback"
_WORD = re.compile(r"[a-z_]{1,40}")
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
<p>{words}</p>
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
    """What the browser brought: a code, or why there is none (the end of a sentence)."""

    code: str = field(default="", repr=False)
    problem: str | None = None


def parse_authorization_response(query: str, state: str) -> AuthorizationResponse:
    """The query of a redirect → what it brings. Nothing in it is believed unless `state` is ours."""
    given = {name: values[0] for name, values in parse_qs(query).items() if len(values) == 1}
    if not hmac.compare_digest(given.get("state", "").encode("utf-8", "replace"), state.encode()):
        return AuthorizationResponse(
            problem="what the browser brought belongs to another sign-in (its state does not match)"
        )
    if "error" in given:
        return AuthorizationResponse(problem=_denial_reason(given["error"], given.get("error_description", "")))
    if not given.get("code"):
        return AuthorizationResponse(problem="the browser came back without a code")
    return AuthorizationResponse(given["code"])


def _denial_reason(error: str, description: str) -> str:
    word = error if _WORD.fullmatch(error) else "no"
    detail = " ".join("".join(c if c.isprintable() else " " for c in description).split())[:_MAX_REASON_LENGTH].rstrip(
        "."
    )
    reason = "access was denied" if word == "access_denied" else f"the sign-in server says {word}"
    return f"{reason} ({detail})" if detail else reason


class CallbackServer:
    """A port of this machine at which one redirect is awaited; `with` closes it.

    Raises `CredentialsError` when all of the `ports` are taken.
    """

    def __init__(self, ports: Sequence[int], state: str) -> None:
        self._responses: queue.SimpleQueue[AuthorizationResponse] = queue.SimpleQueue()
        self._server = _listen(ports, self._handler(state))
        self.port = int(self._server.server_port)

    @property
    def redirect_uri(self) -> str:
        return f"http://127.0.0.1:{self.port}{_PATH}"

    def __enter__(self) -> CallbackServer:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def wait(self, seconds: float) -> str:
        """The code, once the browser has brought it. Raises `CredentialsError` when it brings none, or nothing."""
        try:
            response = self._responses.get(timeout=seconds)
        except queue.Empty:
            raise CredentialsError(
                f"nobody came back from the browser within {seconds / 60:.3g} minutes; "
                "to try again: arkor login --oauth"
            ) from None
        if response.problem:
            raise CredentialsError(f"you are not signed in: {response.problem}; to try again: arkor login --oauth")
        return response.code

    def _handler(self, state: str) -> type[BaseHTTPRequestHandler]:
        responses, first = self._responses, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            timeout = REQUEST_SECONDS
            server_version, sys_version = "arkor", ""

            def do_GET(self) -> None:  # the name that http.server wants
                url = urlsplit(self.path)
                if url.path != _PATH or not first.acquire(blocking=False):
                    self._show(404, "There is nothing here.")
                    return
                response = parse_authorization_response(url.query, state)
                try:
                    self._show(400 if response.problem else 200, _page_text(response))
                finally:
                    responses.put(response)

            def _show(self, status: int, words: str) -> None:
                page = _PAGE.format(words=html.escape(words)).encode()
                self.send_response(status)
                for name, value in {**_HEADERS, "Content-Length": str(len(page))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(page)

            def log_message(self, *args: object) -> None:
                """Nothing: the request line has the code in it."""

        return Handler


def _page_text(response: AuthorizationResponse) -> str:
    if response.problem:
        return f"This did not work: {response.problem}. You may close this page; the terminal says how to go on."
    return "The terminal has heard from you. You may close this page and go on there."


class _CallbackHTTPServer(ThreadingHTTPServer):
    """Listens without asking for the name of this machine, and keeps what goes wrong with a visitor to itself."""

    daemon_threads = True

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment] # what HTTPServer sets

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that hangs up early is no news."""


def _listen(ports: Sequence[int], handler: type[BaseHTTPRequestHandler]) -> _CallbackHTTPServer:
    for port in ports:
        try:
            return _CallbackHTTPServer(("127.0.0.1", port), handler)
        except OSError:  # noqa: PERF203 - a few at most
            continue
    named = ", ".join(map(str, ports))
    raise CredentialsError(
        f"the browser comes back to one of the ports {named} of this machine, and all of them are taken; "
        "end what listens there (a sign-in that still waits?) and try again"
    )
