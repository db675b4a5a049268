"""The server process of Studio: its application, the port that it listens on, and the browser."""

from __future__ import annotations

import asyncio
import atexit
import errno
import html
import os
import socket
import webbrowser
from collections.abc import Callable
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from arkor.errors import ArkorError
from arkor.settings import arkor_home
from arkor.studio.backend_client import BackendClient
from arkor.studio.pages import endpoints, overview, playground, run, runs
from arkor.studio.rendering import error_page, fault, fault_page, shell
from arkor.studio.run_index import RunIndex
from arkor.studio.run_processes import RunProcesses
from arkor.studio.security import HOST, ListenAddress, SecurityMiddleware, new_token
from arkor.studio.stream_proxy import end_streams

FIRST_PORT, PORTS = 4000, 10
_STATIC = Path(__file__).parent / "static"


def serve(folder: Path, port: int | None, announce: Callable[[str], None]) -> None:
    """Serve the project in `folder` until Ctrl-C; pass the URL, with its token, to `announce`."""
    sock = listen(port)
    address, token = ListenAddress(sock.getsockname()[1]), new_token()
    config = uvicorn.Config(
        make_app(folder, address, token),
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    announce(f"{address.url}#token={token}")  # the socket accepts connections already
    asyncio.run(_Server(config).serve(sockets=[sock]))


def listen(port: int | None = None) -> socket.socket:
    """Listen on `port`; by default on the first free one from 4000 to 4009. Raises `ArkorError`."""
    for candidate in [port] if port is not None else range(FIRST_PORT, FIRST_PORT + PORTS):
        if (found := _try_listen(candidate)) is not None:
            return found
    if port is not None:
        raise ArkorError(f"port {port} is in use", remedy="choose another one, or omit --port to use a free one")
    last = FIRST_PORT + PORTS - 1
    raise ArkorError(f"the ports {FIRST_PORT} to {last} are in use", remedy="choose a free one: arkor dev --port 5000")


def _try_listen(port: int) -> socket.socket | None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    # Take over a port that was closed a moment ago.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((HOST, port))
        sock.listen(128)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            return None
        raise ArkorError(f"cannot listen on port {port} ({error.strerror})", remedy="choose another one") from None
    return sock


class _Server(uvicorn.Server):
    """A server that ends its streams when it stops."""

    async def shutdown(self, sockets: list[object] | None = None) -> None:  # type: ignore[override] # passed on
        end_streams()
        await super().shutdown(sockets)  # type: ignore[arg-type]


def open_browser(address: str) -> None:
    """Open the URL in the user's browser, by a private file that redirects to it.

    Other users of the machine could read the token in the browser's command line.
    """
    file = arkor_home() / "studio" / f"open-{os.getpid()}.html"
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as page:
        page.write(
            f'<!doctype html><meta http-equiv="refresh" content="0; url={html.escape(address)}"><title>Arkor</title>'
        )
    atexit.register(lambda: file.unlink(missing_ok=True))
    webbrowser.open(file.as_uri())


# The application


def make_app(folder: Path, address: ListenAddress, token: str) -> SecurityMiddleware:
    """Return the application for the project in `folder`; requests need the token."""
    routes = [route for module in (overview, runs, run, playground, endpoints) for route in module.routes]
    app = Starlette(
        routes=[*routes, Mount("/static", _Static(directory=_STATIC))],
        exception_handlers={ArkorError: fault, 404: _no_such_page, Exception: error_page},
    )
    app.state.folder = folder
    app.state.backend = BackendClient(folder)
    app.state.run_index = RunIndex(app.state.backend)
    app.state.run_processes = RunProcesses(folder)
    app.state.backend.connect_in_background()
    return SecurityMiddleware(app, address, token, shell())


class _Static(StaticFiles):
    """Static files that the browser revalidates, so that an upgrade takes effect at once."""

    def file_response(self, *arguments: object, **options: object) -> Response:
        response = super().file_response(*arguments, **options)  # type: ignore[arg-type] # passed on
        response.headers["Cache-Control"] = "no-cache"
        return response


def _no_such_page(request: Request, error: Exception) -> Response:  # noqa: ARG001 - a handler's signature
    return fault_page(request, 404, "missing", f"Studio has no page {request.url.path}.")
