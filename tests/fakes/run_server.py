"""A backend with one run, whose event stream plays a script: the whole way from a socket to a callback.

Steps that bend the framing (chunks, gzip) are here too; plain ones are in `sse_server.py`.
"""

from __future__ import annotations

import json
import socket
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from arkor import AnonymousCredentials, Trainer
from tests.fakes.sse_server import ScriptedServer, Step, answer, frame

JOB = {
    "id": "j",
    "orgId": "o",
    "projectId": "p",
    "name": "a run",
    "status": "running",
    "config": {"model": "m", "datasetSource": {"type": "huggingface", "name": "rows"}},
    "createdAt": "2026-01-01T00:00:00.000Z",
}
PROJECT = {"id": "p", "slug": "p", "name": "P", "orgId": "o"}


class RunServer(ScriptedServer):
    """Knows the routes that a trainer needs; `job` is what it says of the run, `calls` what it was asked."""

    def __init__(self, *steps: Step) -> None:
        self.job: dict[str, Any] = dict(JOB)
        self.calls: list[str] = []
        self.special: dict[str, Step] = {}
        super().__init__(*steps)

    def step_for(self, headers: dict[str, str]) -> Step:
        path = headers[":path"].split("?")[0]
        if path.endswith("/events/stream"):
            return super().step_for(headers)
        call = f"{headers[':method']} {path}"
        self.calls.append(call)
        body = {"projects": [PROJECT], "project": PROJECT} if "projects" in path else {"job": self.job}
        return self.special.get(call) or answer(200, json.dumps(body).encode())

    def watch(self, folder: Path, **settings: Any) -> Trainer:
        """A trainer that is attached to the run."""
        return Trainer.attach("j", **{"progress": False, "project_dir": folder, **self.sign_in(), **settings})

    def sign_in(self) -> dict[str, Any]:
        return {"base_url": self.url, "credentials": AnonymousCredentials("secret-token", "anon", self.url, "o")}


def completed(event_id: object) -> bytes:
    data = '{"type":"training.completed","jobId":"j","timestamp":"t","artifacts":[]}'
    return frame(event_id, "training.completed", data)


def send_chunked(parts: Iterable[bytes], coding: str = "", finish: bool = True) -> Step:
    """Each part is an HTTP chunk of its own, compressed (`gzip`, `deflate`) if asked."""

    def step(connection: socket.socket, headers: dict[str, str]) -> None:
        head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n"
        connection.sendall((head + (f"Content-Encoding: {coding}\r\n" if coding else "") + "\r\n").encode())
        squeeze = zlib.compressobj(wbits=31 if coding == "gzip" else 15) if coding else None
        for part in parts:
            data = squeeze.compress(part) + squeeze.flush(zlib.Z_SYNC_FLUSH) if squeeze else part
            connection.sendall(b"%x\r\n%s\r\n" % (len(data), data))
        if finish:
            connection.sendall(b"0\r\n\r\n")

    return step
