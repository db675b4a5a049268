"""The server process of Studio: listen on a port, print the URL, open a browser, serve."""

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

from arkor.errors import ArkorError
from arkor.settings import arkor_home
from arkor.studio.app import make_app
from arkor.studio.security import HOST, ListenAddress, new_token
from arkor.studio.stream_proxy import end_streams

FIRST_PORT, PORTS = 4000, 10


def serve(folder: Path, port: int | None, announce: Callable[[str], None]) -> None:
    """Serve the project in `folder` until Ctrl-C; pass the URL, with its token, to `announce`.

    Raises `ArkorError` if the port, or each of the ten default ports, is in use.
    """
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
    server = _Server(config, lambda: announce(f"{address.url}#token={token}"))
    asyncio.run(server.serve(sockets=[sock]))


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
    """Return a listening socket, or None if the port is in use."""
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
    """A server that reports when it is ready, and ends its streams when it stops."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override] # passed on
        await super().startup(sockets)  # type: ignore[arg-type]
        self._ready()

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
