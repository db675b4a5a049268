"""A plug that ends network calls from another thread, whatever they are waiting for.

Connections that are opened or used inside `with plug:` hang on it, in the style of a cancel scope: `pull()` shuts their
sockets down, which wakes whoever connects, shakes hands, waits for headers or reads; closing them would not. Only a
name that is being resolved cannot be hurried.
"""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError
from urllib3.poolmanager import PoolManager, ProxyManager
from urllib3.util.connection import allowed_gai_family

_here = threading.local()


class Unplugged(Exception):
    """The plug of this thread was pulled: nobody waits for what it was doing."""


class Plug:
    """Inside `with plug:` network calls hang on it. `pull()` and `release()` may come from any thread, and twice."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pulled = threading.Event()
        self._held: dict[int, socket.socket] = {}

    def __enter__(self) -> Plug:
        self._outer = current()
        _here.plug = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _here.plug = self._outer

    @property
    def pulled(self) -> bool:
        return self._pulled.is_set()

    def check(self) -> None:
        """Raises `Unplugged` once it is pulled."""
        if self._pulled.is_set():
            raise Unplugged

    def pause(self, seconds: float) -> None:
        """Sleep; raises `Unplugged` as soon as it is pulled."""
        if self._pulled.wait(seconds):
            raise Unplugged

    def hold(self, sock: socket.socket) -> None:
        """From here on `pull()` ends that connection. Raises `Unplugged` when it comes too late."""
        with self._lock:
            self.check()
            if outdated := self._held.pop(sock.fileno(), None):
                outdated.close()
            # A twin, because TLS takes the original away from its owner in mid-handshake.
            self._held[sock.fileno()] = socket.socket(sock.family, sock.type, sock.proto, os.dup(sock.fileno()))

    def pull(self) -> None:
        """End every connection that hangs here; no further one begins."""
        with self._lock:
            self._pulled.set()
            for twin in self._held.values():
                with suppress(OSError):  # it has ended already
                    twin.shutdown(socket.SHUT_RDWR)
        self.release()

    def release(self) -> None:
        """Let the connections go on without this plug."""
        with self._lock:
            for twin in self._held.values():
                twin.close()
            self._held.clear()


def current() -> Plug | None:
    """The plug that this thread's calls hang on."""
    return getattr(_here, "plug", None)


def pause(seconds: float) -> None:
    """Sleep, under this thread's plug if it has one. Raises `Unplugged`."""
    (current() or Plug()).pause(seconds)


# Connections


class _Plugged(HTTPConnection):
    """A connection that looks for a plug when it is opened, and when it is used once more."""

    def _new_conn(self) -> socket.socket:
        plug = current()
        if plug is None:
            return super()._new_conn()
        try:
            return self._connect(plug)
        except socket.gaierror as error:
            raise NameResolutionError(self.host, self, error) from error
        except TimeoutError as error:
            raise ConnectTimeoutError(self, f"no connection to {self.host} in {self.timeout} s") from error
        except OSError as error:
            plug.check()
            raise NewConnectionError(self, f"no connection to {self.host}: {error}") from error

    def _connect(self, plug: Plug) -> socket.socket:
        fault = OSError("the name has no address")
        addresses = socket.getaddrinfo(self._dns_host, self.port, allowed_gai_family(), socket.SOCK_STREAM)
        for family, kind, protocol, _, address in addresses:
            sock = socket.socket(family, kind, protocol)
            try:
                for option in self.socket_options or ():
                    sock.setsockopt(*option)
                sock.settimeout(self.timeout)
                plug.hold(sock)
                sock.connect(address)
            except OSError as error:
                sock.close()
                fault = error
            except BaseException:
                sock.close()
                raise
            else:
                return sock
        raise fault

    def request(self, *arguments: Any, **options: Any) -> None:
        plug = current()
        if plug is not None and self.sock is not None:
            plug.hold(self.sock)
        super().request(*arguments, **options)


class _PluggedTLS(_Plugged, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Plugged


class _PoolTLS(HTTPSConnectionPool):
    ConnectionCls = _PluggedTLS


class PluggedAdapter(HTTPAdapter):
    """Gives a session of requests connections that hang on plugs, through proxies too."""

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, **options)
        _plug_in(self.poolmanager)

    def proxy_manager_for(self, *arguments: Any, **options: Any) -> Any:
        manager = super().proxy_manager_for(*arguments, **options)
        if isinstance(manager, ProxyManager):
            _plug_in(manager)
        return manager


def _plug_in(manager: PoolManager) -> None:
    manager.pool_classes_by_scheme = {"http": _Pool, "https": _PoolTLS}
