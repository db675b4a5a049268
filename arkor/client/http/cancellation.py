"""Cancel network calls from another thread, whatever they are waiting for.

Connections that are opened or used inside `with scope:` are registered in that scope. `cancel()`
shuts their sockets down, which interrupts connecting, the TLS handshake and reading; closing them
would not. Only name resolution cannot be interrupted.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

_thread_scope = threading.local()


class Cancelled(Exception):
    """The cancel scope of this thread was cancelled, so its result is not needed."""


class CancelScope:
    """The network calls made inside `with scope:`. Its methods are thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancelled = threading.Event()
        self._sockets: dict[int, socket.socket] = {}

    def __enter__(self) -> CancelScope:
        self._outer = current_scope()
        _thread_scope.scope = self
        return self

    def __exit__(self, *_: object) -> None:
        _thread_scope.scope = self._outer

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def raise_if_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise Cancelled

    def sleep(self, seconds: float) -> None:
        """Sleep; raise `Cancelled` as soon as the scope is cancelled."""
        if self._cancelled.wait(seconds):
            raise Cancelled

    def register(self, sock: socket.socket) -> None:
        """Let `cancel()` shut this socket down; raise `Cancelled` if it was called already."""
        with self._lock:
            self.raise_if_cancelled()
            if stale := self._sockets.pop(sock.fileno(), None):
                stale.close()
            # A duplicate, because TLS detaches the original socket during the handshake.
            self._sockets[sock.fileno()] = socket.socket(sock.family, sock.type, sock.proto, socket.dup(sock.fileno()))

    def cancel(self) -> None:
        """Shut down every registered connection and prevent new ones."""
        with self._lock:
            self._cancelled.set()
            for duplicate in self._sockets.values():
                with suppress(OSError):  # already disconnected
                    duplicate.shutdown(socket.SHUT_RDWR)
        self.release()

    def release(self) -> None:
        """Forget the registered connections, which stay open."""
        with self._lock:
            for duplicate in self._sockets.values():
                duplicate.close()
            self._sockets.clear()


def current_scope() -> CancelScope | None:
    return getattr(_thread_scope, "scope", None)


def raise_if_cancelled() -> None:
    """Raise `Cancelled` if the scope of this thread was cancelled."""
    if scope := current_scope():
        scope.raise_if_cancelled()


def sleep(seconds: float) -> None:
    """Sleep; raise `Cancelled` as soon as the scope of this thread is cancelled."""
    (current_scope() or CancelScope()).sleep(seconds)
