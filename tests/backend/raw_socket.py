"""Raw connections to a backend: send arbitrary bytes, read the responses."""

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
    """One response."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@contextmanager
def connect(url: str, seconds: float = 10) -> Iterator[socket.socket]:
    """Open a connection with a timeout."""
    where = urlsplit(url)
    with socket.create_connection((where.hostname, where.port), timeout=seconds) as line:
        yield line


def reply(line: socket.socket) -> Reply:
    """Read the next response, and no byte of the one after it."""
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
    """Return the seconds until the server closes the connection."""
    began = time.monotonic()
    try:
        while line.recv(65536):
            pass
    except ConnectionError:
        pass
    return time.monotonic() - began


def head(method: str, path: str, **headers: str) -> bytes:
    """Return the head of a request, by default for the host localhost."""
    fields = {"Host": "localhost", **{name.replace("_", "-"): value for name, value in headers.items()}}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")
