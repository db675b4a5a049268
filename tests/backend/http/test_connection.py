"""Connections: slow clients, malformed HTTP, oversized heads and bodies, too many connections."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import requests

from arkor.backend.http.connection import HEAD_LIMIT
from arkor.settings import VERSION
from tests.backend.caller import Caller, owner
from tests.backend.raw_socket import Reply, connect, head, reply, seconds_until_closed
from tests.conftest import Backend, stop_backend

SCOPE = "orgSlug=local&projectSlug=default"


@pytest.fixture(scope="module")
def short_timeout_backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """A backend with timeouts of one second and a limit of 30 connections."""
    home = tmp_path_factory.mktemp("hasty") / "home"
    home.mkdir()
    command = [sys.executable, "-m", "tests.backend.short_timeouts", "--home", str(home), "--engine", "scripted"]
    with (home / "test-backend.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + 30
    while not (home / "backend.json").exists():
        assert time.monotonic() < deadline, (home / "test-backend.log").read_text()
        time.sleep(0.01)
    found = json.loads((home / "backend.json").read_text())
    yield Backend(found["url"], found["token"], home, process)
    stop_backend(home)
    process.wait()


def check_error(answer: Reply, status: int, code: str) -> None:
    """Check that an error of the connection has the shape of the application's errors."""
    assert (answer.status, answer.json()["code"]) == (status, code)
    assert answer.json()["error"].endswith(".")
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-arkor-version"] == VERSION


# Slow


def test_a_head_that_trickles_in_is_a_408(short_timeout_backend: Backend) -> None:
    began = time.monotonic()
    with connect(short_timeout_backend.url) as line:
        line.settimeout(0.1)
        for letter in b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: ":
            line.sendall(bytes([letter]))
            with suppress(TimeoutError):
                assert line.recv(1, socket.MSG_PEEK)
                break
        line.settimeout(20)
        check_error(reply(line), 408, "too_slow")
    assert 0.8 < time.monotonic() - began < 20


def test_a_second_head_that_trickles_in_is_a_408_too(short_timeout_backend: Backend) -> None:
    with connect(short_timeout_backend.url) as line:
        line.sendall(head("GET", "/healthz"))
        assert reply(line).status == 200
        line.sendall(b"GET ")
        check_error(reply(line), 408, "too_slow")


def test_who_says_nothing_is_hung_up_on(short_timeout_backend: Backend) -> None:
    with connect(short_timeout_backend.url) as line:
        assert 0.5 < seconds_until_closed(line) < 20


@pytest.mark.parametrize("path", [f"/v1/projects?{SCOPE}", f"/v1/datasets?filename=x&{SCOPE}"])
def test_a_body_that_trickles_in_is_a_408(short_timeout_backend: Backend, path: str) -> None:
    began = time.monotonic()
    with connect(short_timeout_backend.url) as line:
        line.sendall(head("POST", path, Authorization=f"Bearer {short_timeout_backend.token}", Content_Length="100000"))
        line.settimeout(0.2)
        for _ in range(40):
            with suppress(TimeoutError, ConnectionError):
                line.sendall(b"x")
                if line.recv(1, socket.MSG_PEEK):
                    break
        line.settimeout(20)
        check_error(reply(line), 408, "too_slow")
    assert time.monotonic() - began < 20
    assert not list((short_timeout_backend.home / "datasets").glob(".*"))


def test_a_slow_upload_that_goes_on_is_taken(short_timeout_backend: Backend) -> None:
    def data() -> Iterator[bytes]:
        for _ in range(30):  # three times as long as a stalled body may take
            time.sleep(0.1)
            yield b"x" * 200

    answer = owner(short_timeout_backend).call(
        "POST", "/v1/datasets", params={**owner(short_timeout_backend).scope, "filename": "x"}, data=data()
    )
    assert (answer.status_code, answer.json()["dataset"]["bytes"]) == (201, 6000)


def test_what_comes_after_the_answer_is_not_heard_for_ever(short_timeout_backend: Backend) -> None:
    with connect(short_timeout_backend.url) as line:
        line.sendall(head("POST", "/v1/projects", Content_Length="1000000000"))
        assert reply(line).status == 401
        began = time.monotonic()
        with pytest.raises(ConnectionError):
            while time.monotonic() - began < 30:
                line.sendall(b"x" * 1000)
                time.sleep(0.05)
        assert time.monotonic() - began < 20


def test_a_watcher_is_not_slow(short_timeout_backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    caller = owner(short_timeout_backend)
    job = caller.submit(maxSteps=1)
    caller.until(job, "completed")
    with connect(short_timeout_backend.url) as line:
        line.sendall(
            head("GET", f"/v1/jobs/{job}/events/stream?{SCOPE}", Authorization=f"Bearer {short_timeout_backend.token}")
        )
        time.sleep(2)
        assert line.recv(20).startswith(b"HTTP/1.1 200")


# Malformed


@pytest.mark.parametrize(
    "noise",
    [
        b"\x16\x03\x01\x02\x00\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n",
        head("POST", "/v1/projects", Content_Length="-1"),
        head("POST", "/v1/projects", Content_Length="+5"),
        head("POST", "/v1/projects", Content_Length="abc"),
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        head("POST", "/v1/projects", Transfer_Encoding="gzip"),
    ],
)
def test_what_is_no_http_gets_a_sentence(backend_env: Backend, noise: bytes) -> None:
    with connect(backend_env.url) as line:
        line.sendall(noise)
        answer = reply(line)
    assert answer.status in (400, 501)
    check_error(answer, answer.status, "invalid_http")


def test_a_chunk_that_lies_gets_a_sentence(backend_env: Backend) -> None:
    with connect(backend_env.url) as line:
        path = f"/v1/projects?{SCOPE}"
        line.sendall(head("POST", path, Authorization=f"Bearer {backend_env.token}", Transfer_Encoding="chunked"))
        line.sendall(b"xyz\r\nnot a length")
        check_error(reply(line), 400, "invalid_http")
    assert "Traceback" not in (backend_env.home / "test-backend.log").read_text()


def test_what_is_no_http_behind_a_request_does_no_harm(backend_env: Backend) -> None:
    for _ in range(10):
        with connect(backend_env.url) as line:
            line.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        with connect(backend_env.url) as line:
            line.sendall(head("GET", "/healthz") + b"SM\r\n\r\n")
            assert reply(line).status == 200
            check_error(reply(line), 400, "invalid_http")
    assert "Traceback" not in (backend_env.home / "test-backend.log").read_text()


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("where", ["path", "header", "query"])
def test_a_head_may_not_be_huge(backend_env: Backend, where: str, whole: bool) -> None:
    bulk = "x" * (HEAD_LIMIT + 1)
    parts = {"path": ("/" + bulk, ""), "query": ("/healthz?" + bulk, ""), "header": ("/healthz", bulk)}
    path, value = parts[where]
    request = head("GET", path, X_Bulk=value)
    with connect(backend_env.url) as line:
        line.sendall(request if whole else request[:-4])
        check_error(reply(line), 431, "too_large")


def test_a_body_shorter_than_was_said_is_nobodys_business(backend_env: Backend) -> None:
    with connect(backend_env.url) as line:
        path = f"/v1/projects?{SCOPE}"
        line.sendall(head("POST", path, Authorization=f"Bearer {backend_env.token}", Content_Length="100") + b'{"name"')
        line.shutdown(socket.SHUT_WR)
        seconds_until_closed(line)
    assert "Traceback" not in (backend_env.home / "test-backend.log").read_text()


@pytest.mark.parametrize("framing", ["length", "chunked", "lie"])
def test_a_body_beyond_the_limit_is_a_413(backend_env: Backend, framing: str) -> None:
    with connect(backend_env.url) as line:
        size = {"length": {"Content_Length": "2000000"}, "lie": {"Content_Length": "9" * 18}}
        fields = size.get(framing, {"Transfer_Encoding": "chunked"})
        line.sendall(head("POST", f"/v1/projects?{SCOPE}", Authorization=f"Bearer {backend_env.token}", **fields))
        with suppress(ConnectionError):
            for _ in range(30 if framing == "chunked" else 0):
                line.sendall(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
        check_error(reply(line), 413, "too_large")


def test_what_was_half_said_is_forgotten_by_the_next_request(backend_env: Backend) -> None:
    with connect(backend_env.url) as line:
        line.sendall(
            head("POST", "/v1/projects", Content_Length="21") + b"GET /healthz HTTP/1.1" + head("GET", "/healthz")
        )
        assert reply(line).status == 401
        assert reply(line).json()["status"] == "ok"


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "identity, gzip"])
def test_a_compressed_body_is_a_415(caller: Caller, encoding: str) -> None:
    answer = caller.call("POST", "/v1/projects", data=b"\x1f\x8b", headers={"Content-Encoding": encoding})
    assert (answer.status_code, answer.json()["code"]) == (415, "compressed")


# Many


@pytest.mark.slow
def test_more_connections_than_there_is_room_for_are_told(short_timeout_backend: Backend) -> None:
    with ExitStack() as stack:
        lines = [stack.enter_context(connect(short_timeout_backend.url)) for _ in range(30)]
        late = stack.enter_context(connect(short_timeout_backend.url))
        answer = reply(late)
        check_error(answer, 503, "busy")
        assert answer.headers["retry-after"] == "5"
        assert all(seconds_until_closed(line) < 20 for line in lines)
    assert requests.get(f"{short_timeout_backend.url}/healthz", timeout=10).status_code == 200


@pytest.mark.slow
def test_a_crowd_of_sleepers_keeps_nobody_out_for_long(short_timeout_backend: Backend) -> None:
    with ExitStack() as stack:
        for _ in range(30):
            stack.enter_context(connect(short_timeout_backend.url)).sendall(b"GET /healthz HTTP/1.1\r\nHost: loc")
        deadline = time.monotonic() + 30
        while True:
            with suppress(requests.RequestException):
                if requests.get(f"{short_timeout_backend.url}/healthz", timeout=5).status_code == 200:
                    break
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert "Traceback" not in Path(short_timeout_backend.home / "test-backend.log").read_text()
