"""Studio as a process: listens, says where, opens a browser, and serves until it is interrupted."""

from __future__ import annotations

import asyncio
import atexit
import html
import os
import webbrowser
from collections.abc import Callable
from pathlib import Path

import uvicorn

from arkor.settings import arkor_home
from arkor.studio.app import make_app
from arkor.studio.listener import listen
from arkor.studio.security import new_token
from arkor.studio.stream_proxy import end_streams


def serve(folder: Path, port: int | None, announce: Callable[[str], None]) -> None:
    """Serve the project in `folder` on `port` (None: the first free one of ten); `announce` gets the address.

    The address has the token behind its `#`. Raises `ArkorError` when there is no port.
    """
    address = listen(port)
    token = new_token()
    app = make_app(folder, address, token)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    server = _Server(config, lambda: announce(f"{address.url}#token={token}"))
    asyncio.run(server.serve(sockets=[address.socket]))


class _Server(uvicorn.Server):
    """Tells when it answers, and lets nobody who watches a run hold it up when it is to stop."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override] # handed on
        await super().startup(sockets)  # type: ignore[arg-type]
        self._ready()

    async def shutdown(self, sockets: list[object] | None = None) -> None:  # type: ignore[override] # handed on
        end_streams()
        await super().shutdown(sockets)  # type: ignore[arg-type]


def open_browser(address: str) -> None:
    """Open the address in the person's browser.

    Not by its command line, which everybody on this machine can read, but by a page that only its owner can.
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
