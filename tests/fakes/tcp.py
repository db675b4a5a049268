"""A TCP server on loopback, and the head of an HTTP request as bytes."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress


class TcpListener:
    """Listens on a port of loopback; each connection is handled on a thread of its own and then closed."""

    def __init__(self, handle: Callable[[socket.socket], None], port: int = 0) -> None:
        self._handle = handle
        self._socket = socket.create_server(("127.0.0.1", port))
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                threading.Thread(target=self._run, args=(connection,), daemon=True).start()

    def _run(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            self._handle(connection)

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._socket.close()


def read_head(connection: socket.socket) -> tuple[str, str, dict[str, str]]:
    """Return the method, the target and the headers (lower-case names) of a request; empty ones if it was cut off."""
    head = b""
    while b"\r\n\r\n" not in head:
        if not (data := connection.recv(65536)):
            return "", "", {}
        head += data
    first, *lines = head.partition(b"\r\n\r\n")[0].split(b"\r\n")
    method, target, *_ = first.decode("latin-1").split()
    pairs = (line.partition(b":")[::2] for line in lines)
    return method, target, {name.decode().lower(): value.strip().decode("utf-8", "replace") for name, value in pairs}
