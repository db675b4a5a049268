"""A model hub as far as a download needs it: one repository's files and what is known of them, on loopback."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Handler(BaseHTTPRequestHandler):
    """Answers for one repository; `repository` and `folder` are set by a subclass."""

    repository: str
    folder: Path

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        files = sorted(file for file in self.folder.iterdir() if file.is_file())
        if path.startswith(f"/{self.repository}/resolve/"):
            self._file(self.folder / path.rsplit("/", 1)[1], with_body)
        elif path.startswith(f"/api/models/{self.repository}/tree/"):
            self._json([_entry(file) for file in files], with_body)
        elif path.startswith(f"/api/models/{self.repository}"):
            siblings = [{"rfilename": file.name} for file in files]
            self._json({"id": self.repository, "sha": COMMIT, "siblings": siblings}, with_body)
        else:
            self._send(404, b"", with_body, "text/plain", ("X-Error-Code", "RepoNotFound"))

    def _file(self, file: Path, with_body: bool) -> None:
        if file.is_file():
            self._send(200, file.read_bytes(), with_body, "application/octet-stream", ("ETag", f'"{_digest(file)}"'))
        else:
            self._send(404, b"", with_body, "text/plain", ("X-Error-Code", "EntryNotFound"))

    def _json(self, value: object, with_body: bool) -> None:
        self._send(200, json.dumps(value).encode(), with_body, "application/json")

    def _send(self, status: int, body: bytes, with_body: bool, kind: str, *more: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in (("Content-Type", kind), ("Content-Length", str(len(body))), *more):
            self.send_header(name, value)
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None: ...


def _digest(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


def _entry(file: Path) -> dict[str, object]:
    return {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": _digest(file)}


@contextmanager
def hub_of(repository: str, folder: Path) -> Iterator[str]:
    """Serve the files of `folder` as that repository; gives the hub's address."""
    handler = type("RepositoryHandler", (Handler,), {"repository": repository, "folder": folder})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
