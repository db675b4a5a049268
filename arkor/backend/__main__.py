"""The server's process: `python -m arkor.backend --home DIR`; with `--rebuild` it makes a new database and leaves.

One server per home (a lock), found through `backend.json`. It leaves when told to (SIGTERM) and, if it was given a
time for that, after a quiet while; workers go on without it. On any address but loopback it serves only with a token of
its operator's choice, from `ARKOR_SERVE_TOKEN` or `--token-file`, never from the command line, which every process can
read. Exit codes: 0 left in peace, 2 could not start (the sentence on stderr says why), 3 another server serves this
home.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from attrs import field, frozen

try:
    import uvicorn
    from sqlalchemy.exc import DBAPIError

    from arkor.backend.http.app import create_app
    from arkor.backend.http.connection import HEAD_LIMIT, HttpConnection, raise_open_file_limit
    from arkor.backend.http.middleware import ConcurrencyMiddleware
    from arkor.backend.store.rebuild import quarantine, register_orphans
    from arkor.backend.store.schema import StoreError
    from arkor.backend.store.store import Store, new_token
    from arkor.protocol.validation import is_loopback
except ModuleNotFoundError as missing:
    if (missing.name or "").startswith("arkor"):
        raise
    print(f"The backend needs {missing.name}: pip install 'arkor[local]'", file=sys.stderr)  # noqa: T201
    sys.exit(2)

from arkor.backend.runs.paths import (
    address_file,
    database_file,
    lock_file,
    owner_token_file,
    prepare,
    remove_leftovers,
    truncate_log,
    write_atomically,
)
from arkor.errors import InvalidConfig
from arkor.settings import PROTOCOL, VERSION, arkor_home, check_limits

#: How long a reader has, when the server leaves, to take what was sent to it.
DRAIN_SECONDS = 0.5


#: How short the operator's token may be.
MIN_TOKEN_LENGTH = 16

NEW_TOKEN_COMMAND = "python3 -c 'import secrets; print(secrets.token_urlsafe(32))'"  # noqa: S105

TOKEN_REQUIRED = (
    "Other machines would reach the backend on {host!r}, so it needs a token that callers must bring: put one into a "
    "file that only you can read and name that with --token-file, or into ARKOR_SERVE_TOKEN. To make one: "
    + NEW_TOKEN_COMMAND
)


class StartupError(Exception):
    """Why not, in a sentence, and the exit code."""

    def __init__(self, sentence: str, exit_code: int = 2) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code


class Server(uvicorn.Server):
    """Leaves on a signal without dying of it, and when it is left alone; tells the streams before it waits for them."""

    def __init__(
        self, config: uvicorn.Config, home: Path, is_idle: Callable[[], bool], on_shutdown: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._home = home
        self._is_idle = is_idle
        self._on_shutdown = on_shutdown

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.handle_exit)
        yield

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0 and self._is_idle():
            self.should_exit = True
        if counter % 600 == 0:
            with contextlib.suppress(OSError):
                truncate_log(self._home)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_shutdown()
        asyncio.get_running_loop().call_later(DRAIN_SECONDS, self._close_connections)
        await super().shutdown(sockets)

    def _close_connections(self) -> None:
        """On those who do not take what was sent to them; they would hold us up for as long as they like."""
        for connection in list(self.server_state.connections):
            if isinstance(connection, HttpConnection) and connection.flow.write_paused:
                connection.transport.abort()


@frozen
class ServeOptions:
    """Where and for whom to serve: until told to leave, or until nobody has called for `idle` seconds (0: never)."""

    host: str
    port: int
    idle: float
    operator_token: str | None = field(default=None, repr=False)
    greet: bool = False


def serve(home: Path, engine: str, options: ServeOptions) -> None:
    """Serve until it is time to leave. Raises `StartupError`."""
    with home_errors_as_sentences(home):
        prepare(home)
    with server_lock(home), home_errors_as_sentences(home), contextlib.closing(open_store(home)) as store:
        remove_leftovers(home)
        token = owner_token(home)
        store.ensure_owner(token)
        register_orphans(home, store)
        listener = listen(options.host, options.port)
        private = is_loopback(listener.getsockname()[0])
        if not private and options.operator_token is None:
            listener.close()
            raise StartupError(TOKEN_REQUIRED.format(host=options.host))
        operator_secret = options.operator_token
        app = create_app(
            home, store, engine, operator_token=operator_secret, open_to_own_user=private and operator_secret is None
        )
        middleware = ConcurrencyMiddleware(
            app, loopback_only=private and operator_secret is None
        )  # a proxy hands on the name it was called by

        def is_idle() -> bool:
            idle_since = middleware.idle_since()
            long_enough = options.idle > 0 and idle_since is not None and time.monotonic() - idle_since >= options.idle
            return long_enough and has_no_work(store)

        def on_shutdown() -> None:
            address_file(home).unlink(missing_ok=True)
            app.state.arkor.log_notifier.close()

        url = announce(home, listener, token)
        if options.greet:
            print(f"Serving {home} on {url}; Ctrl-C leaves (runs in progress go on)", file=sys.stderr)  # noqa: T201
        Server(_config(middleware), home, is_idle, on_shutdown).run([listener])


def has_no_work(store: Store) -> bool:
    """Whether every job has ended, as far as the database can be read."""
    try:
        return store.count_unfinished() == 0
    except DBAPIError:
        return False


def rebuild(home: Path) -> str:
    """Make the home's database anew from its run folders, and tell of it. Raises `StartupError`."""
    with home_errors_as_sentences(home):
        prepare(home)
    with server_lock(home), home_errors_as_sentences(home):
        quarantined = quarantine(home)
        with contextlib.closing(open_store(home)) as store:
            store.ensure_owner(owner_token(home))
            registered = register_orphans(home, store)
    old_note = f" The old one is {quarantined} now." if quarantined else ""
    return f"{database_file(home)} is new, with the {len(registered)} runs whose folders are there.{old_note}"


def _config(app: ConcurrencyMiddleware) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=HttpConnection,
        h11_max_incomplete_event_size=HEAD_LIMIT,
        headers=[("X-Arkor-Version", VERSION)],
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # who calls is who is connected, whatever a header says
        timeout_keep_alive=60,
        timeout_graceful_shutdown=2,
    )


@contextlib.contextmanager
def home_errors_as_sentences(home: Path) -> Iterator[None]:
    """An OSError in here is the home's fault, and so is the database's."""
    try:
        yield
    except OSError as error:
        path, reason = error.filename or home, error.strerror or error
        sentence = f"The backend cannot use {path}: {reason}. Mend that, or choose another home with ARKOR_HOME."
        raise StartupError(sentence) from error
    except DBAPIError as error:
        raise StartupError(f"The backend cannot use {database_file(home)}: {error.orig}.") from error


@contextlib.contextmanager
def server_lock(home: Path) -> Iterator[None]:
    """Hold the home's lock."""
    with home_errors_as_sentences(home):
        lock = lock_file(home).open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StartupError(f"Another backend serves {home} already.", 3) from None
        yield


def open_store(home: Path) -> Store:
    """The home's database. Raises `StartupError`."""
    try:
        return Store(database_file(home))
    except StoreError as error:
        raise StartupError(str(error)) from error


def owner_token(home: Path) -> str:
    """The owner's token, which stays the same for as long as the home does. Raises OSError."""
    file = owner_token_file(home)
    with contextlib.suppress(FileNotFoundError):
        if token := file.read_text(encoding="utf-8").strip():
            return token
    token = new_token()
    write_atomically(file, token)
    return token


def listen(host: str, port: int) -> socket.socket:
    """A socket that accepts already; port 0 is a free one. Raises `StartupError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named as TCP, or asyncio leaves Nagle's delay on, and a second small answer waits for 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(1024)
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or error
        sentence = f"The backend cannot listen on {host}, port {port}: {reason}. Choose another with --port."
        raise StartupError(sentence) from error
    return listener


def announce(home: Path, listener: socket.socket, token: str) -> str:
    """Say in `backend.json` where to call; returns that URL. Raises OSError."""
    host, port = listener.getsockname()[:2]
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    url = f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"
    address = {"url": url, "token": token, "pid": os.getpid(), "version": VERSION, "protocol": PROTOCOL}
    write_atomically(address_file(home), json.dumps(address))
    return url


def operator_token(file: Path | None) -> str | None:
    """The token that the operator chose, from the file or else from the environment, where no child finds it any more.

    Raises `StartupError` for one that cannot be read, or is none.
    """
    token, source = os.environ.pop("ARKOR_SERVE_TOKEN", "").strip(), "ARKOR_SERVE_TOKEN"
    if file is not None:
        source = str(file)
        try:
            token = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            raise StartupError(f"The token file {file} cannot be read: {reason}.") from error
    elif not token:
        return None
    if len(token) < MIN_TOKEN_LENGTH or not all("!" <= char <= "~" for char in token):
        problem = f"must be at least {MIN_TOKEN_LENGTH} letters, digits and marks without a blank among them"
        raise StartupError(f"The token in {source} {problem}. To make one: {NEW_TOKEN_COMMAND}")
    return token


def main() -> int:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(prog="python -m arkor.backend", description="Serve runs on this machine.")
    parser.add_argument("--home", type=Path, default=None, help="folder for everything (default: ARKOR_HOME)")
    parser.add_argument("--engine", choices=["trl", "scripted"], default="trl", help="what trains")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    parser.add_argument("--idle", type=float, default=900.0, help="leave after so many quiet seconds; 0: never")
    parser.add_argument("--token-file", type=Path, help="the operator's token (default: ARKOR_SERVE_TOKEN)")
    parser.add_argument("--greet", action="store_true", help="say on stderr where it listens")
    parser.add_argument("--rebuild", action="store_true", help="make a new database from the runs' folders, and leave")
    options = parser.parse_args()
    os.umask(0o077)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        check_limits()
        home = (options.home or arkor_home()).absolute()
        if options.rebuild:
            print(rebuild(home))  # noqa: T201
            return 0
        token = operator_token(options.token_file)
        raise_open_file_limit()
        serve(home, options.engine, ServeOptions(options.host, options.port, options.idle, token, options.greet))
    except (StartupError, InvalidConfig) as error:
        print(error, file=sys.stderr)  # noqa: T201
        return error.exit_code if isinstance(error, StartupError) else 2
    return 0


def exit_process(code: int) -> NoReturn:
    """End the process now: all is written and closed, and to take the modules apart takes Python longer than the rest.

    Threads that are not to be left alone are waited for, as ever.
    """
    for thread in threading.enumerate():
        if not thread.daemon and thread is not threading.current_thread():
            thread.join()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # whoever read it is gone, or it never was
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    exit_process(main())
