"""A company network on loopback: a private certificate authority, servers behind TLS, and a CONNECT proxy.

The proxy opens tunnels to the hosts that were given a name with `serve`, and to no others.
"""

from __future__ import annotations

import base64
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import urlsplit

import trustme

from tests.fakes.tcp import TcpListener, read_head


def pipe(one: socket.socket, other: socket.socket) -> None:
    """Carry bytes both ways until one side is done."""

    def carry(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError, ValueError):
            while data := source.recv(65536):
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    back = threading.Thread(target=carry, args=(other, one), daemon=True)
    back.start()
    carry(one, other)
    back.join()


class CorporateProxy:
    """`serve(host, url)` puts a plain server behind TLS and a name; `bundle` is the authority's certificate."""

    def __init__(self, folder: Path, *, password: str | None = None) -> None:
        self._authority = trustme.CA()
        self.bundle = folder / "company.pem"
        self._authority.cert_pem.write_to_path(str(self.bundle))
        self.tunnels: list[str] = []
        self._password = password
        self._ports: dict[str, int] = {}
        self._stack = ExitStack()
        self._proxy = self._listen(self._tunnel)
        user = f"user:{password}@" if password else ""
        self.proxy_url = f"http://{user}127.0.0.1:{self._proxy.port}"

    def _listen(self, handle: Callable[[socket.socket], None]) -> TcpListener:
        listener = TcpListener(handle)
        self._stack.callback(listener.close)
        return listener

    def serve(self, host: str, url: str) -> int:
        """The port on which TLS ends; the proxy leads `host:443` to it."""
        context, upstream = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), urlsplit(url)
        self._authority.issue_cert(host).configure_cert(context)

        def handle(connection: socket.socket) -> None:
            with (
                context.wrap_socket(connection, server_side=True) as inside,
                socket.create_connection((upstream.hostname, upstream.port)) as server,
            ):
                pipe(inside, server)

        self._ports[f"{host}:443"] = self._listen(handle).port
        return self._ports[f"{host}:443"]

    def _tunnel(self, connection: socket.socket) -> None:
        method, target, headers = read_head(connection)
        self.tunnels.append(f"{method} {target}")
        expected = base64.b64encode(f"user:{self._password}".encode()).decode()
        if self._password and headers.get("proxy-authorization") != f"Basic {expected}":
            connection.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
        elif method != "CONNECT" or target not in self._ports:
            connection.sendall(b"HTTP/1.1 403 Blocked by the company\r\nContent-Length: 0\r\n\r\n")
        else:
            connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            with socket.create_connection(("127.0.0.1", self._ports[target])) as server:
                pipe(connection, server)

    def close(self) -> None:
        self._stack.close()
