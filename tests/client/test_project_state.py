"""A project's state file, and the project of a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from arkor.client.api import CloudApiClient
from arkor.client.auth.bootstrap import request_anonymous_token
from arkor.client.project_state import ProjectState, ensure_project, read_state, slug_of, state_path, write_state
from arkor.errors import ArkorError, CloudApiError, ProjectStateMismatch
from arkor.protocol.jobs import Scope
from tests.conftest import Backend
from tests.fakes.http_server import Answer, HttpServer

STATE = ProjectState("org-1", "bot", "p-1")
PROJECT = {"id": "p-1", "slug": "bot", "name": "bot", "orgId": "o-1"}


def client(server: HttpServer) -> CloudApiClient:
    return CloudApiClient(server.url)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    assert read_state(tmp_path) is None
    write_state(STATE, tmp_path)
    assert read_state(tmp_path) == STATE
    assert STATE.scope == Scope("org-1", "bot")
    assert state_path(tmp_path) == tmp_path / ".arkor" / "state.json"
    written = json.loads(state_path(tmp_path).read_text())
    assert written == {"orgSlug": "org-1", "projectSlug": "bot", "projectId": "p-1"}


def test_the_default_is_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_state(STATE)
    assert read_state() == read_state(tmp_path) == STATE


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "{}", '{"orgSlug": 1, "projectSlug": "b", "projectId": "c"}'])
def test_an_invalid_file_is_ignored(tmp_path: Path, text: str) -> None:
    state_path(tmp_path).parent.mkdir()
    state_path(tmp_path).write_text(text)
    assert read_state(tmp_path) is None


def test_an_inaccessible_file_is_named(tmp_path: Path) -> None:
    state_path(tmp_path).mkdir(parents=True)
    with pytest.raises(ArkorError, match=r"state\.json cannot be read"):
        read_state(tmp_path)
    with pytest.raises(ArkorError, match=r"state\.json cannot be written"):
        write_state(STATE, tmp_path)


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("bot", "bot"),
        ("My Bot!", "my-bot"),
        ("--a--", "a"),
        ("über_bot", "ber-bot"),
        ("日本", "project"),
        ("", "project"),
        ("a" * 39 + "-b", "a" * 39 + "-"),
        ("bot-😀-x", "bot----x"),
        ("x" * 60, "x" * 40),
    ],
)
def test_the_slug_of_a_folder(name: str, slug: str) -> None:
    assert slug_of(Path("/") / name) == slug


def test_a_project_is_created_once(tmp_path: Path) -> None:
    folder = tmp_path / "Bot"
    folder.mkdir()
    with HttpServer(Answer(201, {"project": PROJECT})) as server:
        assert ensure_project(client(server), "org-1", folder) == STATE
        assert ensure_project(client(server), "org-1", folder) == STATE
    (request,) = server.requests
    assert (request.path, request.query) == ("/v1/projects", {"orgSlug": "org-1"})
    assert request.json() == {"name": "Bot", "slug": "bot"}
    assert read_state(folder) == STATE


def test_an_existing_project_is_reused(tmp_path: Path) -> None:
    folder = tmp_path / "bot"
    folder.mkdir()
    others = [{**PROJECT, "id": "p-0", "slug": "else"}, PROJECT]
    with HttpServer(Answer(409, {"error": "Taken."}), Answer(body={"projects": others})) as server:
        assert ensure_project(client(server), "org-1", folder) == STATE


def test_a_taken_slug_of_no_visible_project_is_an_error(tmp_path: Path) -> None:
    taken = Answer(409, {"error": "Taken."})
    with HttpServer(taken, Answer(body={"projects": []})) as server, pytest.raises(CloudApiError, match=r"Taken\."):
        ensure_project(client(server), "org-1", tmp_path)
    assert read_state(tmp_path) is None


def test_the_state_of_another_organisation_is_kept(tmp_path: Path) -> None:
    write_state(STATE, tmp_path)
    with HttpServer(Answer()) as server, pytest.raises(ProjectStateMismatch) as caught:
        ensure_project(client(server), "org-2", tmp_path)
    assert all(word in str(caught.value) for word in (str(state_path(tmp_path)), "org-1", "org-2", "sign in", "remove"))
    assert server.requests == []
    assert read_state(tmp_path) == STATE


def test_against_a_real_backend(backend: Backend, tmp_path: Path) -> None:
    identity = request_anonymous_token(backend.url)
    caller = CloudApiClient(backend.url, identity)
    for name in ("one", "two", "two/one"):
        (tmp_path / name).mkdir()
    one = ensure_project(caller, identity.org_slug, tmp_path / "one")
    two = ensure_project(caller, identity.org_slug, tmp_path / "two")
    namesake = ensure_project(caller, identity.org_slug, tmp_path / "two" / "one")
    assert one == namesake
    assert one.project_id != two.project_id
    assert {p.slug for p in caller.list_projects(scope=one.scope)} == {"one", "two"}
