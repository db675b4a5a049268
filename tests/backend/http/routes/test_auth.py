"""Authentication, host and origin checks, and what all responses have in common."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from arkor.settings import PROTOCOL, VERSION
from tests.backend.caller import Caller, owner, stranger
from tests.backend.raw_socket import connect, head, reply
from tests.conftest import Backend


def test_health_needs_no_token(backend_env: Backend) -> None:
    answer = requests.get(f"{backend_env.url}/healthz", timeout=10)
    expected = {"status": "ok", "version": VERSION, "protocol": PROTOCOL, "activeRuns": 0}
    assert answer.json() == expected


def test_an_anonymous_identity(backend_env: Backend) -> None:
    body = {"kind": "web"}
    answer = requests.post(f"{backend_env.url}/v1/auth/anonymous", json=body, timeout=10)
    identity = answer.json()
    assert set(identity) == {"token", "anonymousId", "kind", "personalOrg"}
    assert identity["kind"] == "web"
    me = Caller(backend_env.url, identity["token"], {}).call("GET", "/v1/me").json()
    assert me == {"user": {"id": identity["anonymousId"], "email": None}, "orgs": [identity["personalOrg"]]}


def test_the_kind_is_checked(backend_env: Backend) -> None:
    answer = requests.post(f"{backend_env.url}/v1/auth/anonymous", json={"kind": "robot"}, timeout=10)
    assert answer.status_code == 400
    assert answer.json()["error"] == 'kind: must be "cli" or "web"'


def test_there_is_no_oauth(backend_env: Backend) -> None:
    answer = requests.get(f"{backend_env.url}/v1/auth/cli/config", timeout=10)
    assert answer.json() == {"auth0Domain": None, "clientId": None, "audience": None, "callbackPorts": []}


def test_the_owner(caller: Caller) -> None:
    me = caller.call("GET", "/v1/me").json()
    assert me["user"]["id"] == "local"
    assert [org["slug"] for org in me["orgs"]] == ["local"]


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic abc", "Bearer \xe9\xff", "Bearer a b c", "x" * 9000],
)
@pytest.mark.parametrize("path", ["/v1/me", "/v1/projects", "/v1/jobs", "/v1/jobs/x/events/stream"])
def test_no_way_in_without_a_token(backend_env: Backend, path: str, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    answer = requests.get(backend_env.url + path, headers=headers, timeout=10)
    assert answer.status_code == 401
    assert answer.json()["code"] == "unauthorized"


def test_the_scope_must_be_there_and_ones_own(backend_env: Backend) -> None:
    caller, other = owner(backend_env), stranger(backend_env)
    cases = [
        ({}, 400, None),
        ({"orgSlug": "local"}, 400, None),
        ({"orgSlug": "nowhere", "projectSlug": "default"}, 403, "forbidden"),
        (other.scope, 403, "forbidden"),
        ({"orgSlug": "local", "projectSlug": "nowhere"}, 404, "project_not_found"),
        ({"orgSlug": "local", "projectSlug": "mine"}, 404, "project_not_found"),
    ]
    for scope, status, code in cases:
        answer = caller.call("GET", "/v1/jobs", params=scope)
        assert answer.status_code == status, scope
        assert code is None or answer.json()["code"] == code
    assert "projectSlug" in caller.call("GET", "/v1/jobs", params={"orgSlug": "local"}).json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "status", "word"),
    [
        ("GET", "/v1/nowhere", 404, "/v1/nowhere"),
        ("GET", "/v1/jobs/", 404, "/v1/jobs/"),
        ("GET", "/", 404, "/"),
        ("DELETE", "/v1/jobs", 405, "DELETE"),
        ("GET", "/v1/datasets", 405, "GET"),
        ("POST", "/healthz", 405, "POST"),
    ],
)
def test_what_is_not_there_is_a_sentence(caller: Caller, method: str, path: str, status: int, word: str) -> None:
    answer = caller.call(method, path)
    assert answer.status_code == status
    assert word in answer.json()["error"]


def test_every_answer_says_the_version(caller: Caller) -> None:
    for path in ("/healthz", "/nowhere", "/v1/me"):
        assert caller.call("GET", path).headers["X-Arkor-Version"] == VERSION
    refused = caller.call("GET", "/healthz", headers={"Host": "evil.example"})
    assert refused.headers["X-Arkor-Version"] == VERSION


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[", "10.0.0.1"])
def test_another_sites_name_leads_nowhere(caller: Caller, host: str) -> None:
    answer = caller.call("GET", "/healthz", headers={"Host": host})
    assert answer.status_code in (400, 403)


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "http://localhost:1",
        "null",
        "file://",
        "",
        "http://127.0.0.1.evil.example",
        "chrome://x",
    ],
)
@pytest.mark.parametrize("method", ["POST", "OPTIONS", "GET"])
def test_a_page_of_another_site_calls_in_vain(backend_env: Backend, method: str, origin: str) -> None:
    url = f"{backend_env.url}/v1/auth/anonymous" if method != "GET" else f"{backend_env.url}/healthz"
    answer = requests.request(method, url, json={"kind": "web"}, headers={"Origin": origin}, timeout=10)
    assert (answer.status_code, answer.json()["code"]) == (403, "bad_origin")
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]


def test_not_even_the_token_lets_a_page_of_another_site_in(caller: Caller) -> None:
    answer = caller.call("GET", "/v1/me", headers={"Origin": "https://evil.example"})
    assert (answer.status_code, answer.json()["code"]) == (403, "bad_origin")


def test_a_page_that_was_opened_here_may_call(caller: Caller) -> None:
    assert caller.call("GET", "/v1/me", headers={"Origin": caller.url}).status_code == 200


def test_two_tokens_are_none(caller: Caller) -> None:
    with connect(caller.url) as line:
        token = f"Bearer {caller.token}"
        line.sendall(head("GET", "/v1/me", Authorization=token)[:-2] + b"Authorization: Bearer other\r\n\r\n")
        assert reply(line).status == 401


def test_who_is_not_let_in_learns_how(backend_env: Backend) -> None:
    answer = requests.get(f"{backend_env.url}/v1/me", timeout=10)
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "Via"])
def test_what_a_proxy_hands_on_is_not_the_owners(backend_env: Backend, header: str) -> None:
    url = f"{backend_env.url}/v1/auth/anonymous"
    for value in ("127.0.0.1", "for=127.0.0.1"):
        answer = requests.post(url, json={"kind": "cli"}, headers={header: value}, timeout=10)
        assert (answer.status_code, answer.json()["code"]) == (401, "token_required")
        assert "arkor login" in answer.json()["error"]
    owners = {"Authorization": f"Bearer {backend_env.token}", header: "127.0.0.1"}
    assert requests.post(url, json={"kind": "cli"}, headers=owners, timeout=10).status_code == 201


SIGN_UP = """
import os, socket, sys
os.setuid(int(sys.argv[2]))
line = socket.socket()
line.connect(("127.0.0.1", int(sys.argv[1])))
line.sendall(sys.argv[3].encode() + b'{"kind": "cli"}')
print(line.recv(12).decode()[9:])
"""


@pytest.mark.skipif(os.geteuid() != 0 or not Path("/proc/net/tcp").exists(), reason="only root can change its user")
def test_another_user_of_this_machine_gets_no_identity(backend_env: Backend) -> None:
    port = backend_env.url.rsplit(":", 1)[1]
    owners = {"Authorization": f"Bearer {backend_env.token}"}
    for uid, headers, status in ((0, {}, "201"), (65534, {}, "401"), (65534, owners, "201")):
        call = head("POST", "/v1/auth/anonymous", Content_Length="15", **headers).decode()
        command = [sys.executable, "-I", "-c", SIGN_UP, port, str(uid), call]
        assert subprocess.check_output(command, text=True, timeout=30).strip() == status


def test_a_stranger_signs_nobody_up(backend_env: Backend) -> None:
    for token in (stranger(backend_env).token, "wrong"):
        answer = Caller(backend_env.url, token, {}).call("POST", "/v1/auth/anonymous", json={"kind": "cli"})
        assert answer.status_code == 401


@pytest.mark.parametrize("host", ["localhost", "localhost:1", "127.0.0.1", "[::1]:8000", "LOCALHOST"])
def test_names_of_this_machine_lead_in(caller: Caller, host: str) -> None:
    assert caller.call("GET", "/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/healthz", "GET, HEAD, OPTIONS"),
        ("/v1/jobs", "GET, HEAD, OPTIONS, POST"),
        ("/v1/projects", "GET, HEAD, OPTIONS, POST"),
        ("/v1/datasets", "OPTIONS, POST"),
        ("/v1/jobs/x/cancel", "OPTIONS, POST"),
    ],
)
def test_which_methods_a_path_takes(caller: Caller, path: str, allowed: str) -> None:
    refused, payload = caller.call("BREW", path), caller.call("OPTIONS", path)
    assert (refused.status_code, refused.headers["allow"]) == (405, allowed)
    assert (payload.status_code, payload.headers["allow"], payload.content) == (204, allowed, b"")


@pytest.mark.parametrize("path", ["/healthz", "/openapi.json", "/v1/jobs", "/v1/me", "/v1/projects"])
def test_a_head_is_a_get_without_its_body(caller: Caller, path: str) -> None:
    payload, whole = caller.call("HEAD", path), caller.call("GET", path)
    assert (payload.status_code, payload.content) == (200, b"")
    assert payload.headers["content-length"] == str(len(whole.content))
