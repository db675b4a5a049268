"""A bare connection to a backend: whatever bytes, in whatever pieces, and what comes back."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from attrs import frozen


@frozen
class Reply:
    """What a server said, as far as it is one answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@contextmanager
def connect(url: str, seconds: float = 10) -> Iterator[socket.socket]:
    """A connection that waits for at most so long."""
    where = urlsplit(url)
    with socket.create_connection((where.hostname, where.port), timeout=seconds) as line:
        yield line


def reply(line: socket.socket) -> Reply:
    """The next answer on the line, and not a byte of the one behind it."""
    received = b""
    while not received.endswith(b"\r\n\r\n"):
        received += _some(line, 1)
    first, *rest = received.decode("latin-1").strip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (one.partition(":") for one in rest)}
    body = b""
    while missing := int(headers.get("content-length", 0)) - len(body):
        body += _some(line, missing)
    return Reply(int(first.split(" ")[1]), headers, body)


def _some(line: socket.socket, most: int) -> bytes:
    piece = line.recv(most)
    assert piece, "the line ended"
    return piece


def seconds_until_closed(line: socket.socket) -> float:
    """How long it takes until the other end closes the line."""
    began = time.monotonic()
    try:
        while line.recv(65536):
            pass
    except ConnectionError:
        pass
    return time.monotonic() - began


def head(method: str, path: str, **headers: str) -> bytes:
    """A request's head, to localhost where nothing else is said."""
    fields = {"Host": "localhost", **{name.replace("_", "-"): value for name, value in headers.items()}}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")
