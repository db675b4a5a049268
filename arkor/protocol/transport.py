"""Parts of HTTP requests that the client, the notifications and the backend's downloads share."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from http.client import HTTPResponse
from io import BufferedReader, RawIOBase
from typing import Any

from requests import PreparedRequest
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError
from urllib3.util.connection import allowed_gai_family

#: A backend that sends this header creates one job per `Idempotency-Key`.
IDEMPOTENCY_HEADER = "X-Arkor-Idempotency-Key"

_BUFFER_BYTES = 64 * 1024


class HeaderAuth(AuthBase):
    """Set a bearer token, if any, and unchecked headers; any `auth=` also disables `.netrc`."""

    def __init__(self, token: str | None = None, headers: Mapping[str, bytes] | None = None) -> None:
        self._headers = dict(headers or {})
        if token:
            self._headers["Authorization"] = b"Bearer " + token.encode()

    def __call__(self, request: PreparedRequest) -> PreparedRequest:
        request.headers.update(self._headers)  # type: ignore[arg-type] # bytes are sent unchanged
        return request


class GuardedAdapter(HTTPAdapter):
    """A requests adapter with hooks on its sockets; an exception raised by a hook ends the request.

    `on_connect(socket, address)` is called before a socket connects to an (IP address, port, …);
    `on_reuse(socket)` before a further request on an open connection. Connections to proxies are
    guarded as well, unless `guard_proxies` is False.
    """

    def __init__(
        self,
        on_connect: Callable[[socket.socket, Any], None],
        on_reuse: Callable[[socket.socket], None] | None = None,
        *,
        guard_proxies: bool = True,
    ) -> None:
        self._pool_classes = _pool_classes(on_connect, on_reuse)
        self._guard_proxies = guard_proxies
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = self._pool_classes

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        if self._guard_proxies:
            manager.pool_classes_by_scheme = self._pool_classes
        return manager


class Receiver(RawIOBase):
    """The bytes of a connection; `before_receive()` is called each time the buffer is empty."""

    def __init__(self, source: RawIOBase) -> None:
        self._source = source
        self.before_receive: Callable[[], None] | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self.before_receive is not None:
            self.before_receive()
        return self._source.readinto(buffer)

    def fileno(self) -> int:
        return self._source.fileno()

    def close(self) -> None:
        super().close()
        self._source.close()


class _Response(HTTPResponse):
    """A response with a buffer of 64 KiB instead of 8 KiB; `receiver` fills it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.receiver = Receiver(self.fp.detach())  # nothing has been read yet
        self.fp = BufferedReader(self.receiver, _BUFFER_BYTES)


def _pool_classes(
    on_connect: Callable[[socket.socket, Any], None], on_reuse: Callable[[socket.socket], None] | None
) -> dict[str, Any]:
    """Return urllib3's connection pools by URL scheme, with the hooks in their connections."""

    class Connection(HTTPConnection):
        response_class = _Response

        def _new_conn(self) -> socket.socket:
            try:
                return _open_socket(self, on_connect)
            except socket.gaierror as error:
                raise NameResolutionError(self.host, self, error) from error
            except TimeoutError as error:
                raise ConnectTimeoutError(self, f"no connection to {self.host} in {self.timeout} s") from error
            except OSError as error:
                raise NewConnectionError(self, f"no connection to {self.host}: {error}") from error

        def request(self, *args: Any, **kwargs: Any) -> None:
            if on_reuse is not None and self.sock is not None:
                on_reuse(self.sock)
            super().request(*args, **kwargs)

    class TLSConnection(Connection, HTTPSConnection):
        pass

    class Pool(HTTPConnectionPool):
        ConnectionCls = Connection

    class TLSPool(HTTPSConnectionPool):
        ConnectionCls = TLSConnection

    return {"http": Pool, "https": TLSPool}


def _open_socket(connection: HTTPConnection, on_connect: Callable[[socket.socket, Any], None]) -> socket.socket:
    """Connect to the first address that accepts; raise the error of the last one otherwise."""
    failure = OSError("the host name has no address")
    addresses = socket.getaddrinfo(connection._dns_host, connection.port, allowed_gai_family(), socket.SOCK_STREAM)
    for family, kind, protocol, _, address in addresses:
        sock = socket.socket(family, kind, protocol)
        try:
            for option in connection.socket_options or ():
                sock.setsockopt(*option)
            sock.settimeout(connection.timeout)
            on_connect(sock, address)
            sock.connect(address)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure
