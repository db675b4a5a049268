"""The HTTP server of a home: its socket, its address in `backend.json`, and its shutdown.

The server stops on SIGTERM and SIGINT, and after an idle time if one is set. Workers continue
without it. On an address other than loopback it requires a token that the operator has chosen.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from sqlalchemy.exc import DBAPIError

from arkor.backend.http.app import create_app
from arkor.backend.http.connection import HEAD_LIMIT, HttpConnection
from arkor.backend.http.middleware import ConcurrencyMiddleware
from arkor.backend.http.state import AppState
from arkor.backend.runs.paths import address_file, remove_leftovers, rotate_log
from arkor.backend.store.home import locked_home, open_store
from arkor.backend.store.run_registry import register_orphans
from arkor.backend.store.schema import StartupError
from arkor.files import write_atomically
from arkor.protocol.transport import IDEMPOTENCY_HEADER
from arkor.protocol.validation import is_loopback
from arkor.settings import PROTOCOL, VERSION

#: Seconds that clients have at shutdown to read what was sent to them.
DRAIN_SECONDS = 0.5

NEW_TOKEN_COMMAND = "python3 -c 'import secrets; print(secrets.token_urlsafe(32))'"  # noqa: S105


def serve(
    home: Path,
    engine: str,
    *,
    host: str,
    port: int,
    idle: float = 0.0,
    operator_token: str | None = None,
    greet: bool = False,
) -> None:
    """Serve until a signal, or `idle` seconds without use (0: never). Raise `StartupError`."""
    with locked_home(home), open_store(home) as (store, owner_token):
        remove_leftovers(home)
        register_orphans(home, store)
        listener = listen(host, port)
        on_loopback = is_loopback(listener.getsockname()[0])
        if not on_loopback and operator_token is None:
            listener.close()
            raise StartupError(
                f"Other machines could reach the backend on {host!r}, so it requires a token.",
                remedy="Write one to a file that only you can read and pass it with --token-file, or set "
                f"ARKOR_SERVE_TOKEN. To make one: {NEW_TOKEN_COMMAND}",
            )
        own_machine_only = on_loopback and operator_token is None
        app = create_app(home, store, engine, operator_token=operator_token, open_to_own_user=own_machine_only)
        middleware = ConcurrencyMiddleware(app, loopback_only=own_machine_only)  # a proxy may use any host name
        server = Server(app.state.arkor, middleware, idle)
        with server.capture_signals():  # from now on: a signal must not leave the announced address behind
            url = announce(home, listener, owner_token)
            if greet:
                print(f"Serving {home} on {url}; Ctrl-C stops it (runs continue)", file=sys.stderr)  # noqa: T201
            server.run([listener])


class Server(uvicorn.Server):
    """Stops on a signal or when idle, and ends event streams before connections."""

    def __init__(self, state: AppState, middleware: ConcurrencyMiddleware, idle: float) -> None:
        config = uvicorn.Config(
            middleware,
            http=HttpConnection,
            h11_max_incomplete_event_size=HEAD_LIMIT,
            headers=[("X-Arkor-Version", VERSION), (IDEMPOTENCY_HEADER, "honoured")],
            ws="none",
            loop="asyncio",
            lifespan="on",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,  # the peer of the connection counts as the client, whatever a header claims
            timeout_keep_alive=60,
            timeout_graceful_shutdown=2,
        )
        super().__init__(config)
        self._state = state
        self._middleware = middleware
        self._idle = idle

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals without raising them again after the shutdown."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.handle_exit)
        yield

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0 and self._is_idle():
            self.should_exit = True
        if counter % 600 == 0:
            with contextlib.suppress(OSError):
                rotate_log(self._state.home)
        return await super().on_tick(counter)

    def _is_idle(self) -> bool:
        idle_since = self._middleware.idle_since()
        if self._idle <= 0 or idle_since is None or time.monotonic() - idle_since < self._idle:
            return False
        with contextlib.suppress(DBAPIError):
            return self._state.store.count_unfinished() == 0
        return False

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        address_file(self._state.home).unlink(missing_ok=True)
        self._state.log_notifier.close()
        asyncio.get_running_loop().call_later(DRAIN_SECONDS, self._abort_stalled_connections)
        await super().shutdown(sockets)

    def _abort_stalled_connections(self) -> None:
        """Close connections whose clients do not read, which would delay the shutdown."""
        for connection in list(self.server_state.connections):
            if isinstance(connection, HttpConnection) and connection.flow.write_paused:
                connection.transport.abort()


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 selects a free port. Raise `StartupError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Without the explicit protocol asyncio does not set TCP_NODELAY, and a second small response is
    # delayed by 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(1024)
    except (OSError, OverflowError) as error:
        listener.close()
        problem = f"The backend cannot listen on {host}, port {port}: {getattr(error, 'strerror', None) or error}."
        raise StartupError(problem, remedy="Choose another port with --port.") from error
    return listener


def announce(home: Path, listener: socket.socket, token: str) -> str:
    """Write the address of the server to `backend.json`, and return its URL. Raise OSError."""
    host, port = listener.getsockname()[:2]
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    url = f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"
    address = {"url": url, "token": token, "pid": os.getpid(), "version": VERSION, "protocol": PROTOCOL}
    write_atomically(address_file(home), json.dumps(address))
    return url
