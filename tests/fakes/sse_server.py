"""A real HTTP server in a thread that plays a script: one step for each connection that is made to it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

#: Gets the open socket and the request's headers (lower-case names); what it does is what the client sees.
Step = Callable[[socket.socket, dict[str, str]], None]

STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


class ScriptedServer:
    """Serves `steps` one after the other, the last one for ever; keeps the headers of every request."""

    def __init__(self, *steps: Step) -> None:
        self.steps = list(steps)
        self.requests: list[dict[str, str]] = []
        self.released = threading.Event()
        self._playing = threading.Lock()
        self._listen(0)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def _listen(self, port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._serve, args=(self._listener,), daemon=True).start()

    def go_away(self, seconds: float) -> None:
        """Nobody listens for a while."""
        port = self._listener.getsockname()[1]
        self._stop_listening()
        time.sleep(seconds)
        self._listen(port)

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            headers = _read_request(connection)
            with suppress(BrokenPipeError, ConnectionResetError):
                self.step_for(headers)(connection, headers)

    def step_for(self, headers: dict[str, str]) -> Step:
        """The next step of the script."""
        with self._playing:
            step = self.steps[min(len(self.requests), len(self.steps) - 1)]
            self.requests.append(headers)
        return step

    def _stop_listening(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listener.close()

    def close(self) -> None:
        self.released.set()
        self._stop_listening()


def _read_request(connection: socket.socket) -> dict[str, str]:
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = connection.recv(65536)
        if not chunk:
            return {":path": "", ":method": ""}
        data += chunk
    lines = data.split(b"\r\n\r\n")[0].split(b"\r\n")
    pairs = (line.split(b":", 1) for line in lines[1:])
    headers = {name.decode().lower(): value.strip().decode("utf-8", "replace") for name, value in pairs}
    return {":path": lines[0].split()[1].decode(), ":method": lines[0].split()[0].decode(), **headers}


@contextmanager
def serving(*steps: Step) -> Iterator[ScriptedServer]:
    server = ScriptedServer(*steps)
    try:
        yield server
    finally:
        server.close()


# Steps


def send(*parts: bytes) -> Step:
    """An event stream of these bytes, then a clean end."""

    def step(connection: socket.socket, headers: dict[str, str]) -> None:
        connection.sendall(STREAM_HEAD)
        for part in parts:
            connection.sendall(part)

    return step


def send_and_hold(*parts: bytes, until: threading.Event) -> Step:
    """An event stream of these bytes that then stays silent until `until` is set."""

    def step(connection: socket.socket, headers: dict[str, str]) -> None:
        connection.sendall(STREAM_HEAD + b"".join(parts))
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
