"""The choice of backend, credentials and project."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from arkor.client.auth.bootstrap import request_anonymous_token
from arkor.client.auth.credentials import (
    AnonymousCredentials,
    OAuthCredentials,
    credentials_path,
    read_credentials,
    write_credentials,
)
from arkor.client.connect import connect
from arkor.client.project_state import ProjectState, read_state, write_state
from arkor.errors import ArkorError, CredentialsError, InvalidConfig, ProjectStateMismatch
from arkor.protocol.jobs import Scope
from tests.conftest import Backend
from tests.fakes.http_server import Answer, HttpServer, Request

PROJECT = {"id": "p-1", "slug": "bot", "name": "bot", "orgId": "o-1"}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bot"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def identity(url: str) -> AnonymousCredentials:
    return AnonymousCredentials("t", "a", url, "org-1")


def person(url: str) -> OAuthCredentials:
    return OAuthCredentials("t", "r", 4e9, "login.example", "audience", "client", url)


def test_the_default_is_this_machine(backend: Backend, project: Path) -> None:
    client = connect()
    assert (client.base_url, client.scope) == (backend.url, Scope("local", "default"))
    assert client.http.auth.source == "embedded"
    assert client.list_jobs() == []
    assert list(project.iterdir()) == []
    assert read_credentials() is None


def test_base_url_takes_precedence(module_backend: Backend, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARKOR_CLOUD_API_URL", "http://127.0.0.1:1")
    client = connect(module_backend.url + "/")
    assert (client.base_url, client.http.auth.source) == (module_backend.url, "base_url")
    found = read_credentials()
    assert isinstance(found, AnonymousCredentials)
    assert client.scope == Scope(found.org_slug, "bot")
    assert client.list_jobs() == []
    state = read_state(project)
    assert state is not None
    assert state.scope == client.scope
    assert connect(module_backend.url).scope == client.scope


def test_the_environment_precedes_the_file(
    module_backend: Backend, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARKOR_CLOUD_API_URL", f" {module_backend.url}/ ")
    client = connect()
    assert (client.base_url, client.http.auth.source) == (module_backend.url, "ARKOR_CLOUD_API_URL")
    monkeypatch.setenv("ARKOR_CLOUD_API_URL", "http://127.0.0.1:1")
    with pytest.raises(CredentialsError, match=module_backend.url):
        connect()


def test_the_file_precedes_this_machine(module_backend: Backend, project: Path) -> None:
    write_credentials(request_anonymous_token(module_backend.url))
    client = connect()
    assert (client.base_url, client.http.auth.source) == (module_backend.url, "credentials file")
    assert client.list_jobs() == []


def test_given_credentials_are_used_and_not_stored(module_backend: Backend, project: Path) -> None:
    given = request_anonymous_token(module_backend.url)
    client = connect(credentials=given)
    assert (client.base_url, client.http.auth.source) == (module_backend.url, "credentials")
    assert client.scope == Scope(given.org_slug, "bot")
    assert not credentials_path().exists()


def test_the_project_is_named_after_its_folder(tmp_path: Path) -> None:
    with HttpServer(Answer(201, {"project": PROJECT})) as server:
        assert connect(server.url, identity(server.url), tmp_path).scope == Scope("org-1", "bot")
    assert read_state(tmp_path) == ProjectState("org-1", "bot", "p-1")


def test_a_project_of_another_organisation_is_kept(project: Path) -> None:
    write_state(ProjectState("org-2", "bot", "p-2"))
    with HttpServer(Answer()) as server, pytest.raises(ProjectStateMismatch, match="org-2"):
        connect(server.url, identity(server.url))
    assert server.requests == []


@pytest.mark.parametrize("url", ["", "localhost:4000", "ftp://x"])
def test_an_invalid_address(url: str, project: Path) -> None:
    with pytest.raises(InvalidConfig, match="base_url"):
        connect(url)


def orgs(*slugs: str) -> Answer:
    return Answer(200, {"user": {"id": "u"}, "orgs": [{"id": s, "slug": s, "name": s} for s in slugs]})


def test_a_person_with_one_organisation_works_there(project: Path) -> None:
    def backend(request: Request) -> Answer:
        return orgs("mine") if request.path == "/v1/me" else Answer(201, {"project": PROJECT})

    with HttpServer(backend) as server:
        assert connect(server.url, person(server.url)).scope == Scope("mine", "bot")


def test_a_person_with_several_uses_the_one_of_the_project(project: Path) -> None:
    with HttpServer(orgs("one", "two")) as server:
        with pytest.raises(ArkorError, match="one, two"):
            connect(server.url, person(server.url))
        write_state(ProjectState("two", "bot", "p-1"))
        assert connect(server.url, person(server.url)).scope == Scope("two", "bot")


def test_invalid_credentials_are_ignored(backend: Backend, project: Path) -> None:
    credentials_path().write_text(json.dumps({"mode": "anon"}))
    assert connect().http.auth.source == "embedded"
