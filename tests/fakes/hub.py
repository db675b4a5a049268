"""A model hub as far as a download needs it: the files of one repository and their metadata, on loopback."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, unquote

from tests.fakes.http_server import Answer, HttpServer, Request

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _sha1(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


def _answer(repository: str, folder: Path, request: Request, kind: str) -> Answer:
    path = unquote(request.path)
    files = sorted(file for file in folder.iterdir() if file.is_file())
    if path.startswith(f"{'' if kind == 'models' else f'/{kind}'}/{repository}/resolve/"):
        file = folder / path.rsplit("/", 1)[1]
        if file in files:
            headers = {"Content-Type": "application/octet-stream", "ETag": f'"{_sha1(file)}"'}
            return Answer(200, file.read_bytes(), headers)
        return Answer(404, b"", {"X-Error-Code": "EntryNotFound"})
    api = f"/api/{kind}/{repository}"
    entries = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": _sha1(f)} for f in files]
    if path.startswith(f"{api}/tree/"):
        return Answer(200, entries)
    if path.startswith(f"{api}/paths-info/"):
        wanted = (
            parse_qs(request.body.decode()).get("paths", []) if request.body[:1] != b"{" else request.json()["paths"]
        )
        return Answer(200, [entry for entry in entries if entry["path"] in wanted])
    if path.startswith(api):
        return Answer(200, {"id": repository, "sha": COMMIT, "siblings": [{"rfilename": f.name} for f in files]})
    return Answer(404, b"", {"X-Error-Code": "RepoNotFound"})


@contextmanager
def hub_of(repository: str, folder: Path, kind: str = "models") -> Iterator[HttpServer]:
    """Serve the files of `folder` as that repository of models or `datasets`; yields the server."""

    def answer(request: Request) -> Answer:
        found = _answer(repository, folder, request, kind)
        found.headers["X-Repo-Commit"] = COMMIT
        return found

    with HttpServer(answer) as server:
        yield server
