"""Uploads: streamed, stored by content, atomic."""

from __future__ import annotations

import hashlib
import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import psutil
import pytest

from tests.backend.caller import CONFIG, Caller, stranger
from tests.conftest import Backend

pytestmark = pytest.mark.slow  # real processes, terminals or clocks


def upload(caller: Caller, data: bytes | Iterator[bytes], filename: str = "rows.jsonl") -> dict[str, object]:
    answer = caller.call("POST", "/v1/datasets", params={**caller.scope, "filename": filename}, data=data)
    assert answer.status_code == 201, answer.text
    found: dict[str, object] = answer.json()["dataset"]
    return found


def test_a_file_is_kept_by_its_content(caller: Caller, backend_env: Backend) -> None:
    data = b'{"text": "hello"}\n'
    digest = hashlib.sha256(data).hexdigest()
    expected = {"id": digest, "filename": "a b.jsonl", "bytes": len(data), "url": f"/v1/datasets/{digest}/a%20b.jsonl"}
    assert upload(caller, data, "a b.jsonl") == expected
    assert upload(caller, data, "a b.jsonl") == expected
    assert upload(caller, data, "other.jsonl")["id"] == digest
    path = backend_env.home / "datasets" / digest
    assert path.read_bytes() == data
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_large_file_streams_through(caller: Caller, backend_env: Backend) -> None:
    pieces, piece = 100, b"0123456789abcdef" * 65536
    before = psutil.Process(backend_env.process.pid).memory_info().rss
    found = upload(caller, (piece for _ in range(pieces)))
    assert found["bytes"] == pieces * len(piece)
    assert found["id"] == hashlib.sha256(piece * pieces).hexdigest()
    assert psutil.Process(backend_env.process.pid).memory_info().rss - before < 40_000_000


@pytest.mark.parametrize("filename", ["", "a/b", "..", "a\\b", "a\0b", "x" * 256])
def test_a_filename_is_only_a_name(caller: Caller, filename: str) -> None:
    answer = caller.call("POST", "/v1/datasets", params={**caller.scope, "filename": filename}, data=b"x")
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("filename: ")


def test_a_file_beyond_the_limit_is_refused_before_it_comes(backend_env: Backend, caller: Caller) -> None:
    where = urlsplit(backend_env.url)
    query = "orgSlug=local&projectSlug=default&filename=x"
    with socket.create_connection((where.hostname, where.port), timeout=10) as line:
        head = f"POST /v1/datasets?{query} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {caller.token}\r\n"
        line.sendall(head.encode() + b"Content-Length: 9000000000\r\n\r\n")
        assert b" 413 " in line.recv(4096)


def test_a_torn_upload_leaves_nothing(backend_env: Backend, caller: Caller) -> None:
    where = urlsplit(backend_env.url)
    folder = backend_env.home / "datasets"
    before = set(folder.iterdir())
    query = "orgSlug=local&projectSlug=default&filename=x"
    with socket.create_connection((where.hostname, where.port), timeout=10) as line:
        head = f"POST /v1/datasets?{query} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {caller.token}\r\n"
        line.sendall(head.encode() + b"Content-Length: 5000000\r\n\r\n" + b"x" * 2_000_000)
        deadline = time.monotonic() + 30
        while set(folder.iterdir()) == before:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    while set(folder.iterdir()) != before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert "Traceback" not in (backend_env.home / "test-backend.log").read_text()


def test_a_file_belongs_to_its_project(caller: Caller, backend_env: Backend) -> None:
    url = upload(caller, b"mine")["url"]
    body = {"name": "n", "config": {**CONFIG, "datasetSource": {"type": "blob", "url": url}}}
    assert caller.call("POST", "/v1/jobs", json=body).status_code == 201
    answer = stranger(backend_env).call("POST", "/v1/jobs", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("config.datasetSource.url: ")
