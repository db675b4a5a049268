"""A plug that ends network calls from another thread, whatever they are waiting for.

Connections that are opened or used inside `with plug:` hang on it, in the style of a cancel scope: `cancel()` shuts
their
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

_thread_scope = threading.local()


class Cancelled(Exception):
    """The plug of this thread was pulled: nobody waits for what it was doing."""


class CancelScope:
    """Inside `with plug:` network calls hang on it. `cancel()` and `release()` may come from any thread, and twice."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancelled = threading.Event()
        self._sockets: dict[int, socket.socket] = {}

    def __enter__(self) -> CancelScope:
        self._outer = current_scope()
        _thread_scope.scope = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _thread_scope.scope = self._outer

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def raise_if_cancelled(self) -> None:
        """Raises `Cancelled` once it is pulled."""
        if self._cancelled.is_set():
            raise Cancelled

    def sleep(self, seconds: float) -> None:
        """Sleep; raises `Cancelled` as soon as it is pulled."""
        if self._cancelled.wait(seconds):
            raise Cancelled

    def register(self, sock: socket.socket) -> None:
        """From here on `cancel()` ends that connection. Raises `Cancelled` when it comes too late."""
        with self._lock:
            self.raise_if_cancelled()
            if stale := self._sockets.pop(sock.fileno(), None):
                stale.close()
            # A twin, because TLS takes the original away from its owner in mid-handshake.
            self._sockets[sock.fileno()] = socket.socket(sock.family, sock.type, sock.proto, os.dup(sock.fileno()))

    def cancel(self) -> None:
        """End every connection that hangs here; no further one begins."""
        with self._lock:
            self._cancelled.set()
            for duplicate in self._sockets.values():
                with suppress(OSError):  # it has ended already
                    duplicate.shutdown(socket.SHUT_RDWR)
        self.release()

    def release(self) -> None:
        """Let the connections go on without this plug."""
        with self._lock:
            for duplicate in self._sockets.values():
                duplicate.close()
            self._sockets.clear()


def current_scope() -> CancelScope | None:
    """The plug that this thread's calls hang on."""
    return getattr(_thread_scope, "scope", None)


def sleep(seconds: float) -> None:
    """Sleep, under this thread's plug if it has one. Raises `Cancelled`."""
    (current_scope() or CancelScope()).sleep(seconds)


# Connections


class _CancellableConnection(HTTPConnection):
    """A connection that looks for a plug when it is opened, and when it is used once more."""

    def _new_conn(self) -> socket.socket:
        scope = current_scope()
        if scope is None:
            return super()._new_conn()
        try:
            return self._connect(scope)
        except socket.gaierror as error:
            raise NameResolutionError(self.host, self, error) from error
        except TimeoutError as error:
            raise ConnectTimeoutError(self, f"no connection to {self.host} in {self.timeout} s") from error
        except OSError as error:
            scope.raise_if_cancelled()
            raise NewConnectionError(self, f"no connection to {self.host}: {error}") from error

    def _connect(self, scope: CancelScope) -> socket.socket:
        fault = OSError("the name has no address")
        addresses = socket.getaddrinfo(self._dns_host, self.port, allowed_gai_family(), socket.SOCK_STREAM)
        for family, kind, protocol, _, address in addresses:
            sock = socket.socket(family, kind, protocol)
            try:
                for option in self.socket_options or ():
                    sock.setsockopt(*option)
                sock.settimeout(self.timeout)
                scope.register(sock)
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
        scope = current_scope()
        if scope is not None and self.sock is not None:
            scope.register(self.sock)
        super().request(*arguments, **options)


class _CancellableTLSConnection(_CancellableConnection, HTTPSConnection):
    pass


class _CancellablePool(HTTPConnectionPool):
    ConnectionCls = _CancellableConnection


class _CancellableTLSPool(HTTPSConnectionPool):
    ConnectionCls = _CancellableTLSConnection


class CancellableAdapter(HTTPAdapter):
    """Gives a session of requests connections that hang on plugs, through proxies too."""

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, **options)
        _use_cancellable_pools(self.poolmanager)

    def proxy_manager_for(self, *arguments: Any, **options: Any) -> Any:
        manager = super().proxy_manager_for(*arguments, **options)
        if isinstance(manager, ProxyManager):
            _use_cancellable_pools(manager)
        return manager


def _use_cancellable_pools(manager: PoolManager) -> None:
    manager.pool_classes_by_scheme = {"http": _CancellablePool, "https": _CancellableTLSPool}
