"""What a watcher leaves behind in this process: its threads, and its sockets to one server."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil


def live_threads() -> list[str]:
    """The threads of arkor that live."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("arkor-")]


def open_sockets(port: int) -> list[str]:
    """Our ends of connections to that port, in whatever state."""
    connections = psutil.Process().net_connections("tcp")
    return [str(c) for c in connections if c.raddr and c.raddr[1] == port]


@contextmanager
def no_leaks(port: int, grace: float = 3) -> Iterator[None]:
    """Fails when something is still there `grace` seconds after the end of the block."""
    yield
    deadline = time.monotonic() + grace
    while (leaks := live_threads() + open_sockets(port)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not leaks
