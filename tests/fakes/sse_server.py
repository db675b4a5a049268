"""A real HTTP server in a thread that plays a script: one step for each connection that is made to it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

from typing_extensions import Self

from tests.fakes.tcp import TcpListener, read_head

#: Gets the open socket and the request's headers (lower-case names); what it does is what the client sees.
Step = Callable[[socket.socket, dict[str, str]], None]

STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


class ScriptedServer:
    """Plays `steps` one after the other, the last one for ever; keeps the headers of every request."""

    def __init__(self, *steps: Step) -> None:
        self.steps = list(steps)
        self.requests: list[dict[str, str]] = []
        self.released = threading.Event()
        self._lock = threading.Lock()
        self._listener = TcpListener(self._answer)
        self.url = f"http://127.0.0.1:{self._listener.port}"

    def go_away(self, seconds: float) -> None:
        """Refuse connections for a while."""
        self._listener.close()
        time.sleep(seconds)
        self._listener = TcpListener(self._answer, self._listener.port)

    def _answer(self, connection: socket.socket) -> None:
        method, target, headers = read_head(connection)
        headers = {":method": method, ":path": target, **headers}
        self.step_for(headers)(connection, headers)

    def step_for(self, headers: dict[str, str]) -> Step:
        """Return the next step of the script."""
        with self._lock:
            step = self.steps[min(len(self.requests), len(self.steps) - 1)]
            self.requests.append(headers)
        return step

    def close(self) -> None:
        self.released.set()
        self._listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# Steps


def send(*parts: bytes, until: threading.Event | None = None) -> Step:
    """An event stream of these bytes, then a clean end; with `until`, silence until that is set."""

    def step(connection: socket.socket, _: dict[str, str]) -> None:
        for part in (STREAM_HEAD, *parts):
            connection.sendall(part)
        if until is not None:
            until.wait(30)

    return step


def answer(status: int, body: bytes = b"", *headers: str, kind: str = "application/json") -> Step:
    """A plain response."""

    def step(connection: socket.socket, request: dict[str, str]) -> None:
        head = [f"HTTP/1.1 {status} Said", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *headers]
        connection.sendall("\r\n".join([*head, "Connection: close", "", ""]).encode() + body)

    return step


def hang_up(connection: socket.socket, headers: dict[str, str]) -> None:
    """Close without a word."""


def frame(event_id: object, kind: str, data: str) -> bytes:
    return f"id: {event_id}\nevent: {kind}\ndata: {data}\n\n".encode()


def log_frame(number: int) -> bytes:
    """The log event of a step, its id the step."""
    return frame(number, "training.log", f'{{"type":"training.log","jobId":"j","timestamp":"t","step":{number}}}')


END_FRAME = b"event: end\ndata: {}\n\n"
PING_FRAME = b"event: ping\ndata: {}\n\n"
