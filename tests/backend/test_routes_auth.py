"""Who gets in, and what every answer has in common."""

from __future__ import annotations

import socket
from contextlib import suppress
from urllib.parse import urlsplit

import pytest
import requests

from arkor.settings import PROTOCOL, VERSION
from tests.backend.caller import Caller, owner, stranger
from tests.conftest import Backend


def test_health_needs_no_token(shared_backend: Backend) -> None:
    answer = requests.get(f"{shared_backend.url}/healthz", timeout=10)
    expected = {"status": "ok", "version": VERSION, "protocol": PROTOCOL, "activeRuns": 0}
    assert answer.json() == expected


def test_an_anonymous_identity(shared_backend: Backend) -> None:
    body = {"kind": "web"}
    answer = requests.post(f"{shared_backend.url}/v1/auth/anonymous", json=body, timeout=10)
    identity = answer.json()
    assert set(identity) == {"token", "anonymousId", "kind", "personalOrg"}
    assert identity["kind"] == "web"
    me = Caller(shared_backend.url, identity["token"], {}).call("GET", "/v1/me").json()
    assert me == {"user": {"id": identity["anonymousId"], "email": None}, "orgs": [identity["personalOrg"]]}


def test_the_kind_is_checked(shared_backend: Backend) -> None:
    answer = requests.post(f"{shared_backend.url}/v1/auth/anonymous", json={"kind": "robot"}, timeout=10)
    assert answer.status_code == 400
    assert answer.json()["error"] == 'kind: must be "cli" or "web"'


def test_there_is_no_oauth(shared_backend: Backend) -> None:
    answer = requests.get(f"{shared_backend.url}/v1/auth/cli/config", timeout=10)
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
def test_no_way_in_without_a_token(shared_backend: Backend, path: str, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    answer = requests.get(shared_backend.url + path, headers=headers, timeout=10)
    assert answer.status_code == 401
    assert answer.json()["code"] == "unauthorized"


def test_the_scope_must_be_there_and_ones_own(shared_backend: Backend) -> None:
    caller, other = owner(shared_backend), stranger(shared_backend)
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


@pytest.mark.parametrize("host", ["localhost", "localhost:1", "127.0.0.1", "[::1]:8000", "LOCALHOST"])
def test_names_of_this_machine_lead_in(caller: Caller, host: str) -> None:
    assert caller.call("GET", "/healthz", headers={"Host": host}).status_code == 200


def test_noise_on_the_line_does_no_harm(shared_backend: Backend) -> None:
    where = urlsplit(shared_backend.url)
    for noise in (
        b"\x16\x03\x01\x02\x00",
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 200_000,
    ):
        with socket.create_connection((where.hostname, where.port), timeout=10) as line:
            with suppress(OSError):  # the server may have hung up already
                line.sendall(noise)
                line.shutdown(socket.SHUT_WR)
    assert requests.get(f"{shared_backend.url}/healthz", timeout=10).status_code == 200
