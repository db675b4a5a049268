"""The access rules of Studio on a shared machine, tested with plain HTTP requests."""

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
    """Send a request without a token."""
    return requests.request(method, studio.url + path, headers=headers, timeout=10, allow_redirects=False)


# The token


def test_without_the_token_every_page_is_the_same_empty_shell(studio_env: Studio) -> None:
    shells = {bare(studio_env, "GET", path).text for path in [*PAGES, "/nothing"]}
    assert len(shells) == 1
    shell = shells.pop()
    for secret in (studio_env.token, str(studio_env.folder), "support-bot", "local"):
        assert secret not in shell


@pytest.mark.parametrize("path", [*PARTS, *STREAMS])
def test_without_the_token_nothing_is_read(studio_env: Studio, path: str) -> None:
    for headers in ({}, {TOKEN_HEADER: "wrong"}, {TOKEN_HEADER: ""}, {"Cookie": f"token={studio_env.token}"}):
        answer = bare(studio_env, "GET", path, **headers)
        assert answer.status_code == 401, headers
        assert studio_env.token not in answer.text


def test_a_wrong_token_does_not_even_get_the_shell(studio_env: Studio) -> None:
    assert bare(studio_env, "GET", "/", **{TOKEN_HEADER: "x" * 43}).status_code == 401


@pytest.mark.parametrize("path", ACTIONS)
def test_without_the_token_nothing_is_done(studio_env: Studio, path: str) -> None:
    assert bare(studio_env, "POST", path).status_code == 401
    assert bare(studio_env, "POST", f"{path}?{TOKEN_PARAMETER}={studio_env.token}").status_code == 401


def test_the_query_may_carry_the_token_of_streams_alone(studio_env: Studio, client: CloudApiClient) -> None:
    job = submit(client, max_steps=2)
    until(client, job, "completed")
    query = f"?{TOKEN_PARAMETER}={studio_env.token}"
    assert bare(studio_env, "GET", f"/streams/runs/{job}{query}").status_code == 200
    for path in PARTS:
        assert bare(studio_env, "GET", path + query).status_code == 401
    assert "support-bot" not in bare(studio_env, "GET", f"/{query}").text


def test_each_launch_has_a_token_of_its_own(studio_env: Studio) -> None:
    other = start_studio(studio_env.folder)
    try:
        assert other.token != studio_env.token
        assert len(other.token) >= 40
        assert bare(other, "GET", "/parts/ready", **{TOKEN_HEADER: studio_env.token}).status_code == 401
    finally:
        other.stop()


def test_the_token_is_written_nowhere(studio_env: Studio, module_studio: tuple[Studio, Backend]) -> None:
    backend = module_studio[1]
    studio_env.get("/")
    studio_env.get(f"/streams/runs/nothing?{TOKEN_PARAMETER}={studio_env.token}")
    folders = [studio_env.folder, backend.home]
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    assert files
    assert not [file for file in files if studio_env.token.encode() in file.read_bytes()]


# Host and Origin


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example:{port}", ""])
def test_a_name_that_is_not_ours_is_refused(studio_env: Studio, host: str) -> None:
    for path in ("/", "/static/app.js", "/parts/ready"):
        answer = studio_env.get(path, headers={"Host": host.replace("{port}", studio_env.port)})
        assert answer.status_code in (400, 403)
        assert "arkor" not in answer.text.lower() or answer.status_code == 403


def test_the_name_localhost_is_ours(studio_env: Studio) -> None:
    assert studio_env.get("/parts/ready", headers={"Host": f"localhost:{studio_env.port}"}).status_code == 204
    assert studio_env.get("/parts/ready", headers={"Host": f"LOCALHOST:{studio_env.port}"}).status_code == 204


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "https://127.0.0.1:{port}", "http://127.0.0.1:1", ""]
)
def test_another_page_is_refused_even_with_the_token(studio_env: Studio, origin: str) -> None:
    headers = {"Origin": origin.replace("{port}", studio_env.port)}
    assert studio_env.get("/parts/ready", headers=headers).status_code == 403
    assert studio_env.post("/actions/launch", headers=headers, data={"click": uuid.uuid4().hex}).status_code == 403
    assert not (studio_env.folder / ".arkor").exists()


def test_our_own_page_is_not(studio_env: Studio) -> None:
    assert studio_env.get("/parts/ready", headers={"Origin": studio_env.url}).status_code == 204


def test_nobody_else_may_read_what_is_answered(studio_env: Studio) -> None:
    answer = studio_env.get("/parts/ready", headers={"Origin": studio_env.url})
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]
    assert (
        studio_env.call("OPTIONS", "/parts/ready", headers={"Access-Control-Request-Method": "GET"}).status_code == 405
    )


# Headers for the browser


@pytest.mark.parametrize("path", [*PAGES, *PARTS, "/static/app.js", "/nothing", *ACTIONS])
def test_every_answer_forbids_what_is_not_ours(studio_env: Studio, path: str) -> None:
    for answer in (studio_env.get(path), bare(studio_env, "GET", path)):
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["Cache-Control"] in ("no-store", "no-cache")
        assert "set-cookie" not in answer.headers


def test_no_page_has_scripts_or_styles_in_it(studio_env: Studio, client: CloudApiClient) -> None:
    job = submit(client, max_steps=2)
    for path in ["/", "/runs", f"/runs/{job}", f"/compare?run={job}&run={submit(client)}", *PARTS]:
        for text in (studio_env.get(path).text, bare(studio_env, "GET", path).text):
            assert not re.search(
                r"<script(?![^>]*\ssrc=)[^>]*>|<style|\sstyle=|\son\w+=\"|javascript:|(?:src|href)=\"https?://", text
            )


def test_a_name_is_just_a_name(studio_env: Studio, client: CloudApiClient) -> None:
    name = "<img src=x onerror=alert(1)>\"'&"
    job, other = submit(client, name, model="<b>model</b>"), submit(client, name, model="scripted/fail")
    until(client, other, "failed")
    time.sleep(1)  # a list is cached for 0.9 s
    for path in (
        "/parts/latest",
        "/parts/runs",
        f"/runs/{job}",
        f"/parts/runs/{job}",
        f"/compare?run={job}&run={other}",
    ):
        text = studio_env.get(path).text
        assert "<img" not in text
        assert "<b>" not in text
        assert "&lt;img src=x onerror=alert(1)&gt;&#34;&#39;&amp;" in text


@pytest.mark.parametrize(
    "path", ["/parts/runs?q=%3Cscript%3E%22", "/runs?q=%3Cscript%3E%22", "/%3Cscript%3E", "/runs/%3Cscript%3E"]
)
def test_an_address_is_just_an_address(studio_env: Studio, path: str) -> None:
    assert "<script" not in studio_env.get(path).text


# Methods and addresses


@pytest.mark.parametrize("path", ACTIONS)
def test_nothing_is_done_by_get(studio_env: Studio, path: str) -> None:
    for method in ("GET", "HEAD"):
        assert studio_env.call(method, path).status_code == 405
    assert not (studio_env.folder / ".arkor").exists()


@pytest.mark.parametrize(
    "path",
    ["/static/../security.py", "/static/%2e%2e/security.py", "/static/..%2f..%2fsettings.py", "/static//etc/passwd"],
)
def test_nothing_but_the_static_files_is_served(studio_env: Studio, path: str) -> None:
    with socket.create_connection(("127.0.0.1", int(studio_env.port))) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{studio_env.port}\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    assert b"TOKEN_HEADER" not in answer
    assert b"root:" not in answer
    assert b"arkor_home" not in answer


@pytest.mark.parametrize("click", ["", "../../x", "A" * 32, "0" * 31, "0" * 32 + "/", "\0" * 32])
def test_a_click_has_a_proper_name(studio_env: Studio, click: str) -> None:
    assert studio_env.post("/actions/launch", data={"click": click}).status_code == 400
    assert not (studio_env.folder / ".arkor").exists()


@pytest.mark.parametrize(
    "path", ["/parts/launches/..%2f..%2fpasswd", "/streams/launches/nothing", "/parts/runs/%2e%2e"]
)
def test_ids_lead_nowhere_else(studio_env: Studio, path: str) -> None:
    assert studio_env.get(path).status_code in (400, 404)


# Where it listens


def test_it_listens_on_loopback_alone(studio_env: Studio) -> None:
    table = Path("/proc/net/tcp")
    if not table.exists():
        pytest.skip("only Linux shows who listens")
    listening = [line.split()[1] for line in table.read_text().splitlines()[1:] if line.split()[3] == "0A"]
    ours = [address for address in listening if int(address.split(":")[1], 16) == int(studio_env.port)]
    assert ours == [f"0100007F:{int(studio_env.port):04X}"]
