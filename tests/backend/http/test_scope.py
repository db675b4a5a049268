"""Access control of every route: no token, a foreign organisation, an id of another project, hostile ids."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from attrs import frozen

from arkor.backend.http.app import create_app
from arkor.backend.http.openapi import DescribedRoute
from arkor.backend.store.store import Store
from tests.backend.caller import LOCAL, Caller, owner, stranger
from tests.backend.raw_socket import Reply, connect, head, reply
from tests.conftest import Backend

HOSTILE = (
    "..",
    "%2e%2e",
    "%2e%2e%2f%2e%2e%2fowner.token",
    "..%2f..%2fowner.token",
    "%2e%2e%5cowner.token",
    "%252e%252e%252f",
    "%2fetc%2fpasswd",
    "%00",
    "x%00.json",
    "%ff%fe",
    "%ed%a0%80",
    "%E2%80%AE",
    "%F0%9F%92%A9",
    "a" * 5000,
    "'%20OR%201=1--",
    "%25s%25n",
    "$(id)",
    "*",
    "%0d%0aX-Evil:%201",
)


@frozen
class Call:
    """A method of a path, and the scope parameters that it requires."""

    method: str
    path: str
    query: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


def calls(home: Path) -> list[Call]:
    """Return every call that requires a token; paths still have their `{…}`."""
    store = Store(home / "arkor.db")
    routes = [route for route in create_app(home, store, "scripted").routes if isinstance(route, DescribedRoute)]
    store.close()
    return [
        Call(method, route.path, route.operation.requirements.query)
        for route in routes
        if route.operation.requirements.token
        for method in sorted((route.methods or set()) - {"HEAD"})
    ]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> list[Call]:
    found = calls(tmp_path_factory.mktemp("routes"))
    assert len(found) >= 15
    return found


def send(backend: Backend, call: Call, token: str | None, scope: dict[str, str], part: str = "unknown") -> Reply:
    """Send the path unescaped, with `part` for every `{…}`."""
    path = re.sub(r"{\w+}", lambda _: part, call.path)
    fields = {"Authorization": f"Bearer {token}"} if token else {}
    fields |= {"Content-Length": "2"} if call.method in ("POST", "PATCH") else {}
    body = b"{}" if "Content-Length" in fields else b""
    with connect(backend.url) as line:
        line.sendall(head(call.method, f"{path}?{urlencode(scope)}", **fields) + body)
        return reply(line)


def error(answer: Reply) -> Any:
    assert answer.headers["x-arkor-version"]
    return answer.status, answer.json()["code"]


def test_no_route_but_a_few_works_without_a_token(backend_env: Backend, guarded: list[Call]) -> None:
    for call in guarded:
        for token in (None, "arkor_wrong"):
            assert error(send(backend_env, call, token, LOCAL)) == (401, "unauthorized"), call


def test_anothers_organisation_is_closed(backend_env: Backend, guarded: list[Call]) -> None:
    other = stranger(backend_env)
    for call in guarded:
        if call.query:
            assert error(send(backend_env, call, other.token, LOCAL)) == (403, "forbidden"), call
            assert error(send(backend_env, call, backend_env.token, other.scope)) == (403, "forbidden"), call
            assert error(send(backend_env, call, other.token, {}))[0] == 400, call


def test_a_project_that_is_not_there_is_a_404(backend_env: Backend, guarded: list[Call]) -> None:
    for call in guarded:
        if "projectSlug" in call.query:
            scope = {**LOCAL, "projectSlug": "nowhere"}
            assert error(send(backend_env, call, backend_env.token, scope)) == (404, "project_not_found"), call


@pytest.fixture(scope="module")
def things(backend_env: Backend) -> Iterator[dict[str, str]]:
    """The ids of a job and a deployment of the owner, by the beginning of their paths."""
    caller = owner(backend_env)
    job = caller.submit(maxSteps=1)
    caller.until(job, "completed")
    target = {"kind": "adapter", "adapter": {"kind": "final", "jobId": job}}
    body = {"slug": "scoped", "target": target, "authMode": "fixed_api_key"}
    deployment = caller.call("POST", "/v1/endpoints", json=body).json()["deployment"]["id"]
    yield {"/v1/jobs/": job, "/v1/endpoints/": deployment}
    assert caller.job(job)["status"] == "completed"
    assert caller.call("GET", f"/v1/endpoints/{deployment}").status_code == 200


def test_an_id_of_another_project_is_not_there(
    backend_env: Backend, guarded: list[Call], things: dict[str, str]
) -> None:
    caller, other = owner(backend_env), stranger(backend_env)
    assert caller.call("POST", "/v1/projects", json={"name": "Other", "slug": "other"}).status_code == 201
    seen = 0
    for call in guarded:
        for beginning, part in things.items():
            if call.path.startswith(beginning + "{"):
                seen += 1
                for token, scope in ((other.token, other.scope), (caller.token, {**LOCAL, "projectSlug": "other"})):
                    status, code = error(send(backend_env, call, token, scope, part))
                    assert (status, code.endswith("_not_found")) == (404, True), call
    assert seen >= 9


def tree(home: Path) -> list[Path]:
    """Return the files below the home, except the database and its temporary files."""
    return sorted(path for path in home.rglob("*") if not path.name.startswith("arkor.db"))


def test_no_id_leads_out_of_the_scope(backend_env: Backend, guarded: list[Call], things: dict[str, str]) -> None:
    before = tree(backend_env.home)
    for call in guarded:
        if "{" in call.path:
            for part in HOSTILE:
                answer = send(backend_env, call, backend_env.token, LOCAL, part)
                assert answer.status in ((400,) if "%00" in part else (404, 405)), (call, part, answer)
                assert "x-evil" not in answer.headers
                assert len(answer.json()["error"]) < 300
    assert tree(backend_env.home) == before
    assert "Traceback" not in (backend_env.home / "test-backend.log").read_text()


@pytest.mark.parametrize("name", ["orgSlug", "projectSlug"])
def test_no_slug_leads_out_of_the_scope(backend_env: Backend, name: str) -> None:
    for part in HOSTILE:
        scope = "&".join(f"{key}={part if key == name else value}" for key, value in LOCAL.items())
        with connect(backend_env.url) as line:
            line.sendall(head("GET", f"/v1/jobs?{scope}", Authorization=f"Bearer {backend_env.token}"))
            answer = reply(line)
        assert answer.status == (400 if "%00" in part else 403 if name == "orgSlug" else 404), part
        assert len(answer.json()["error"]) < 300


def test_ids_cannot_be_guessed(caller: Caller) -> None:
    ids = {caller.submit(maxSteps=1) for _ in range(5)}
    assert all(re.fullmatch(r"[0-9a-f]{32}", one) for one in ids)
    assert len({one[:8] for one in ids}) == len({one[-8:] for one in ids}) == 5
