"""Where Studio listens: a port of the loopback interface, and the names by which a browser may call it."""

from __future__ import annotations

import errno
import socket

from attrs import field, frozen

from arkor.errors import ArkorError

HOST = "127.0.0.1"
FIRST_PORT, PORTS = 4000, 10


@frozen
class ListenAddress:
    """The socket that is listened on, and its port."""

    socket: socket.socket = field(repr=False)
    port: int

    @property
    def hosts(self) -> frozenset[str]:
        """What a `Host` header may say. A name that somebody made resolve to this machine is not among them."""
        end = "" if self.port == 80 else f":{self.port}"  # browsers leave out the port that is meant anyway
        return frozenset(f"{name}{end}" for name in (HOST, "localhost"))

    @property
    def origins(self) -> frozenset[str]:
        """What an `Origin` header may say."""
        return frozenset(f"http://{host}" for host in self.hosts)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}/"


def listen(port: int | None = None) -> ListenAddress:
    """Listen on `port`, or, where none is asked for by name, on the first free one from 4000 to 4009.

    Raises `ArkorError` when there is none.
    """
    for candidate in [port] if port is not None else range(FIRST_PORT, FIRST_PORT + PORTS):
        found = _try_listen(candidate)
        if found is not None:
            return ListenAddress(found, found.getsockname()[1])
    if port is not None:
        raise ArkorError(f"port {port} is taken; name another one, or none and Studio takes a free one")
    last = FIRST_PORT + PORTS - 1
    raise ArkorError(f"the ports {FIRST_PORT} to {last} are taken; name a free one: arkor dev --port 5000")


def _try_listen(port: int) -> socket.socket | None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was left a moment ago is free
    try:
        sock.bind((HOST, port))
        sock.listen(128)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            return None
        raise ArkorError(f"port {port} cannot be listened on ({error.strerror}); name another one") from None
    return sock
