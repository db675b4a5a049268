"""A server of event streams on a socket, in a separate process: the baseline for readers.

    python -m tests.benchmarks.plain_stream [EVENTS]

Prints its URL and serves until stdin ends. The job's id selects the stream: `frames` (one event per
HTTP chunk) and `blocks` (16 KiB per chunk) send EVENTS log events and the end at full speed;
`trickle` sends an event every 5 ms, with the current `time.monotonic_ns()` as its step; `idle`
sends one event, then a ping a second.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from arkor.backend.runs.sse import END, PING
from arkor.protocol.codec import dumps
from arkor.protocol.events import TrainingCompleted, TrainingLog, encode_event
from tests.benchmarks.processes import child

TRICKLED = 500
TRICKLE_SECONDS = 0.005

_JOB = "0" * 32
_TIME = "2026-01-02T03:04:05.678Z"
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_LAST_CHUNK = b"0\r\n\r\n"


def log_event(step: int) -> TrainingLog:
    """Return an event frame of about 204 bytes."""
    return TrainingLog(_JOB, _TIME, step, 1.234567, None, 0.0001, 0.5)


def frame(event: TrainingLog | TrainingCompleted, event_id: int) -> bytes:
    data = encode_event(event)
    return f"id: {event_id}\nevent: {data['type']}\ndata: {dumps(data)}\n\n".encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def replay(events: int, block: int | None) -> bytes:
    """Return a response of `events` log events, with one frame or `block` bytes per chunk."""
    frames = [frame(log_event(step), step) for step in range(1, events + 1)]
    frames += [frame(TrainingCompleted(_JOB, _TIME), events + 1), END]
    if block is None:
        return _HEAD + b"".join(map(chunk, frames)) + _LAST_CHUNK
    body = b"".join(frames)
    cuts = range(0, len(body), block)
    return _HEAD + b"".join(chunk(body[start : start + block]) for start in cuts) + _LAST_CHUNK


def trickle(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(_HEAD)
    due = time.monotonic() + 0.1
    for number in range(1, TRICKLED + 1):
        time.sleep(max(0.0, due - time.monotonic()))
        due += TRICKLE_SECONDS
        connection.sendall(chunk(frame(log_event(time.monotonic_ns()), number)))
    connection.sendall(chunk(frame(TrainingCompleted(_JOB, _TIME), TRICKLED + 1) + END) + _LAST_CHUNK)


def idle(connection: socket.socket) -> None:
    connection.sendall(_HEAD + chunk(frame(log_event(1), 1)))
    while True:
        time.sleep(1)
        connection.sendall(chunk(PING))


def plays(events: int) -> dict[str, Callable[[socket.socket], None]]:
    """The streams by job id."""
    frames, blocks = replay(events, None), replay(events, 16 * 1024)
    return {
        "frames": lambda connection: connection.sendall(frames),
        "blocks": lambda connection: connection.sendall(blocks),
        "trickle": trickle,
        "idle": idle,
    }


def answer(connection: socket.socket, streams: dict[str, Callable[[socket.socket], None]]) -> None:
    """Answer one request: a stream, or a request of the client before it."""
    request = b""
    while b"\r\n\r\n" not in request:
        request += connection.recv(65536)
    path = request.split(b" ", 2)[1].decode().split("?")[0]
    _, _, noun, *rest = path.split("/")
    if rest[1:] == ["events", "stream"]:
        return streams[rest[0]](connection)
    project = {"id": "p", "slug": "default", "name": "default", "orgId": "o"}
    job = {"id": rest[0] if rest else "", "orgId": "o", "projectId": "p", "name": "a run", "status": "running"}
    config = {"model": "m", "datasetSource": {"type": "huggingface", "name": "rows"}}
    body = {"project": project} if noun == "projects" else {"job": {**job, "config": config, "createdAt": _TIME}}
    data = json.dumps(body).encode()
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    )
    return connection.sendall(head.encode() + data)


def serve(listener: socket.socket, streams: dict[str, Callable[[socket.socket], None]]) -> None:
    def one(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            answer(connection, streams)

    while True:
        connection, _ = listener.accept()
        threading.Thread(target=one, args=(connection,), daemon=True).start()


@contextmanager
def serving(events: int) -> Iterator[str]:
    """Start the server in a process; yield its URL."""
    with child("tests.benchmarks.plain_stream", str(events)) as server:
        yield server.read()


def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    events = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
    threading.Thread(target=serve, args=(listener, plays(events)), daemon=True).start()
    print(json.dumps(f"http://127.0.0.1:{listener.getsockname()[1]}"), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
