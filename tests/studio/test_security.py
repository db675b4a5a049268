"""The rules of Studio on a shared machine: each is tried with plain HTTP, as somebody else would."""

from __future__ import annotations

import re
import socket
import time
import uuid
from pathlib import Path

import pytest
import requests

from arkor.client.api import CloudApiClient
from arkor.studio.security import TOKEN_HEADER, TOKEN_PARAMETER
from tests.conftest import Backend
from tests.studio.conftest import Studio, start_studio, submit, until

PAGES = ["/", "/runs", "/compare", "/runs/some-id"]
PARTS = ["/parts/trainer", "/parts/latest", "/parts/identity", "/parts/runs", "/parts/runs/some-id", "/parts/ready"]
PARTS += ["/parts/runs/some-id/checkpoints"]
STREAMS = ["/streams/runs/some-id", "/streams/launches/some-id"]
ACTIONS = ["/actions/launch", "/actions/runs/some-id/cancel"]


def bare(studio: Studio, method: str, path: str, **headers: str) -> requests.Response:
    """A request of somebody who has no token."""
    return requests.request(method, studio.url + path, headers=headers, timeout=10, allow_redirects=False)


# The token


def test_without_the_token_every_page_is_the_same_empty_shell(shared_studio: Studio) -> None:
    shells = {bare(shared_studio, "GET", path).text for path in [*PAGES, "/nothing"]}
    assert len(shells) == 1
    shell = shells.pop()
    for secret in (shared_studio.token, str(shared_studio.folder), "support-bot", "local"):
        assert secret not in shell


@pytest.mark.parametrize("path", [*PARTS, *STREAMS])
def test_without_the_token_nothing_is_read(shared_studio: Studio, path: str) -> None:
    for headers in ({}, {TOKEN_HEADER: "wrong"}, {TOKEN_HEADER: ""}, {"Cookie": f"token={shared_studio.token}"}):
        answer = bare(shared_studio, "GET", path, **headers)
        assert answer.status_code == 401, headers
        assert shared_studio.token not in answer.text


def test_a_wrong_token_does_not_even_get_the_shell(shared_studio: Studio) -> None:
    assert bare(shared_studio, "GET", "/", **{TOKEN_HEADER: "x" * 43}).status_code == 401


@pytest.mark.parametrize("path", ACTIONS)
def test_without_the_token_nothing_is_done(shared_studio: Studio, path: str) -> None:
    assert bare(shared_studio, "POST", path).status_code == 401
    assert bare(shared_studio, "POST", f"{path}?{TOKEN_PARAMETER}={shared_studio.token}").status_code == 401


def test_the_query_may_carry_the_token_of_streams_alone(shared_studio: Studio, client: CloudApiClient) -> None:
    job = submit(client, max_steps=2)
    until(client, job, "completed")
    query = f"?{TOKEN_PARAMETER}={shared_studio.token}"
    assert bare(shared_studio, "GET", f"/streams/runs/{job}{query}").status_code == 200
    for path in PARTS:
        assert bare(shared_studio, "GET", path + query).status_code == 401
    assert "support-bot" not in bare(shared_studio, "GET", f"/{query}").text


def test_each_launch_has_a_token_of_its_own(shared_studio: Studio) -> None:
    other = start_studio(shared_studio.folder)
    try:
        assert other.token != shared_studio.token
        assert len(other.token) >= 40
        assert bare(other, "GET", "/parts/ready", **{TOKEN_HEADER: shared_studio.token}).status_code == 401
    finally:
        other.stop()


def test_the_token_is_written_nowhere(shared_studio: Studio, lasting_studio: tuple[Studio, Backend]) -> None:
    backend = lasting_studio[1]
    shared_studio.get("/")
    shared_studio.get(f"/streams/runs/nothing?{TOKEN_PARAMETER}={shared_studio.token}")
    folders = [shared_studio.folder, backend.home]
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    assert files
    assert not [file for file in files if shared_studio.token.encode() in file.read_bytes()]


# Host and Origin


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example:{port}", ""])
def test_a_name_that_is_not_ours_is_refused(shared_studio: Studio, host: str) -> None:
    for path in ("/", "/static/app.js", "/parts/ready"):
        answer = shared_studio.get(path, headers={"Host": host.replace("{port}", shared_studio.port)})
        assert answer.status_code in (400, 403)
        assert "arkor" not in answer.text.lower() or answer.status_code == 403


def test_the_name_localhost_is_ours(shared_studio: Studio) -> None:
    assert shared_studio.get("/parts/ready", headers={"Host": f"localhost:{shared_studio.port}"}).status_code == 204
    assert shared_studio.get("/parts/ready", headers={"Host": f"LOCALHOST:{shared_studio.port}"}).status_code == 204


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "https://127.0.0.1:{port}", "http://127.0.0.1:1", ""]
)
def test_another_page_is_refused_even_with_the_token(shared_studio: Studio, origin: str) -> None:
    headers = {"Origin": origin.replace("{port}", shared_studio.port)}
    assert shared_studio.get("/parts/ready", headers=headers).status_code == 403
    assert shared_studio.post("/actions/launch", headers=headers, data={"click": uuid.uuid4().hex}).status_code == 403
    assert not (shared_studio.folder / ".arkor").exists()


def test_our_own_page_is_not(shared_studio: Studio) -> None:
    assert shared_studio.get("/parts/ready", headers={"Origin": shared_studio.url}).status_code == 204


def test_nobody_else_may_read_what_is_answered(shared_studio: Studio) -> None:
    answer = shared_studio.get("/parts/ready", headers={"Origin": shared_studio.url})
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]
    assert (
        shared_studio.call("OPTIONS", "/parts/ready", headers={"Access-Control-Request-Method": "GET"}).status_code
        == 405
    )


# What the browser is told


@pytest.mark.parametrize("path", [*PAGES, *PARTS, "/static/app.js", "/nothing", *ACTIONS])
def test_every_answer_forbids_what_is_not_ours(shared_studio: Studio, path: str) -> None:
    for answer in (shared_studio.get(path), bare(shared_studio, "GET", path)):
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["Cache-Control"] in ("no-store", "no-cache")
        assert "set-cookie" not in answer.headers


def test_no_page_has_scripts_or_styles_in_it(shared_studio: Studio, client: CloudApiClient) -> None:
    job = submit(client, max_steps=2)
    for path in ["/", "/runs", f"/runs/{job}", f"/compare?run={job}&run={submit(client)}", *PARTS]:
        for text in (shared_studio.get(path).text, bare(shared_studio, "GET", path).text):
            assert not re.search(
                r"<script(?![^>]*\ssrc=)[^>]*>|<style|\sstyle=|\son\w+=\"|javascript:|(?:src|href)=\"https?://", text
            )


def test_a_name_is_just_a_name(shared_studio: Studio, client: CloudApiClient) -> None:
    name = "<img src=x onerror=alert(1)>\"'&"
    job, other = submit(client, name, model="<b>model</b>"), submit(client, name, model="scripted/fail")
    until(client, other, "failed")
    time.sleep(1)  # what a list has been asked for serves other tabs for 0.9 s
    for path in (
        "/parts/latest",
        "/parts/runs",
        f"/runs/{job}",
        f"/parts/runs/{job}",
        f"/compare?run={job}&run={other}",
    ):
        text = shared_studio.get(path).text
        assert "<img" not in text
        assert "<b>" not in text
        assert "&lt;img src=x onerror=alert(1)&gt;&#34;&#39;&amp;" in text


@pytest.mark.parametrize(
    "path", ["/parts/runs?q=%3Cscript%3E%22", "/runs?q=%3Cscript%3E%22", "/%3Cscript%3E", "/runs/%3Cscript%3E"]
)
def test_an_address_is_just_an_address(shared_studio: Studio, path: str) -> None:
    assert "<script" not in shared_studio.get(path).text


# Methods and addresses


@pytest.mark.parametrize("path", ACTIONS)
def test_nothing_is_done_by_get(shared_studio: Studio, path: str) -> None:
    for method in ("GET", "HEAD"):
        assert shared_studio.call(method, path).status_code == 405
    assert not (shared_studio.folder / ".arkor").exists()


@pytest.mark.parametrize(
    "path",
    ["/static/../security.py", "/static/%2e%2e/security.py", "/static/..%2f..%2fsettings.py", "/static//etc/passwd"],
)
def test_nothing_but_the_static_files_is_served(shared_studio: Studio, path: str) -> None:
    with socket.create_connection(("127.0.0.1", int(shared_studio.port))) as sock:
        sock.sendall(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{shared_studio.port}\r\nConnection: close\r\n\r\n".encode()
        )
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    assert b"TOKEN_HEADER" not in answer
    assert b"root:" not in answer
    assert b"arkor_home" not in answer


@pytest.mark.parametrize("click", ["", "../../x", "A" * 32, "0" * 31, "0" * 32 + "/", "\0" * 32])
def test_a_click_has_a_proper_name(shared_studio: Studio, click: str) -> None:
    assert shared_studio.post("/actions/launch", data={"click": click}).status_code == 400
    assert not (shared_studio.folder / ".arkor").exists()


@pytest.mark.parametrize(
    "path", ["/parts/launches/..%2f..%2fpasswd", "/streams/launches/nothing", "/parts/runs/%2e%2e"]
)
def test_ids_lead_nowhere_else(shared_studio: Studio, path: str) -> None:
    assert shared_studio.get(path).status_code in (400, 404)


# Where it listens


def test_it_listens_on_loopback_alone(shared_studio: Studio) -> None:
    table = Path("/proc/net/tcp")
    if not table.exists():
        pytest.skip("only Linux shows who listens")
    listening = [line.split()[1] for line in table.read_text().splitlines()[1:] if line.split()[3] == "0A"]
    ours = [address for address in listening if int(address.split(":")[1], 16) == int(shared_studio.port)]
    assert ours == [f"0100007F:{int(shared_studio.port):04X}"]
