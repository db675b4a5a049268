"""Signing in with the token of a backend's operator: typed, piped, or from the environment."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from arkor.client.auth.bootstrap import ensure_credentials
from arkor.client.auth.credentials import (
    AnonymousCredentials,
    TokenCredentials,
    credentials_path,
    read_credentials,
    write_credentials,
)
from arkor.errors import CredentialsError
from tests.cli.conftest import ARKOR, Run
from tests.conftest import Backend
from tests.fakes.http_server import Answer, HttpServer, Request

pytestmark = pytest.mark.slow  # every test starts processes of its own

TOKEN = "an-operator-gave-this-out"
ME = {"user": {"id": "owner", "email": None}, "orgs": [{"id": "o", "slug": "local", "name": "Local"}]}


def closed(request: Request) -> Answer:
    """A backend that requires its token."""
    if request.path == "/healthz":
        return Answer(body={"version": "0.1.0"})
    if request.headers.get("authorization") != f"Bearer {TOKEN}":
        return Answer(401, {"error": "This service asks for the token of its operator."})
    return Answer(
        body={"jobs": []} if request.path == "/v1/jobs" else {"project": PROJECT} if "projects" in request.path else ME
    )


PROJECT = {"id": "p", "slug": "project", "name": "project", "orgId": "o"}


@pytest.fixture
def service() -> Iterator[HttpServer]:
    with HttpServer(closed) as server:
        yield server


def test_a_token_is_piped(service: HttpServer, run: Run) -> None:
    done = run("login", "--token-stdin", "--url", service.url, typed=f"{TOKEN}\n")
    assert (done.returncode, done.stdout) == (0, f"Signed in to {service.url} as owner.\n"), done.stderr
    assert TOKEN not in done.stderr
    assert read_credentials() == TokenCredentials(TOKEN, service.url)
    assert json.loads(credentials_path().read_text()) == {
        "mode": "token",
        "token": TOKEN,
        "arkorCloudApiUrl": service.url,
    }
    assert credentials_path().stat().st_mode & 0o777 == 0o600
    output = run("whoami")
    assert output.stdout.splitlines()[0] == f"owner, with the token in {credentials_path()}"
    assert TOKEN not in output.stdout + output.stderr + run("whoami", "--json").stdout
    assert run("jobs", "--json").stdout == "[]\n"
    assert run("logout").stdout == f"Signed out of {service.url}.\n"


def test_a_token_is_typed_unseen(service: HttpServer, project: Path) -> None:
    keyboard, terminal = pty.openpty()
    command = [*ARKOR, "login", "--token", "--url", service.url]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=project, stdin=terminal, start_new_session=True, **pipes) as process:
        assert process.stderr is not None
        payload = process.stderr.read(len("Token: "))  # input before the prompt is discarded
        os.write(keyboard, f"{TOKEN}\n".encode())
        output, said = process.communicate(timeout=20)
    os.close(terminal)
    os.set_blocking(keyboard, False)
    with suppress(OSError):  # the echo of the terminal
        assert TOKEN not in os.read(keyboard, 1000).decode()
    os.close(keyboard)
    assert (process.returncode, payload) == (0, b"Token: "), said
    assert TOKEN.encode() not in output + said
    assert read_credentials() == TokenCredentials(TOKEN, service.url)


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("", "invalid token"),
        ("two words\n", "invalid token"),
        ("not-the-right-one\n", "rejects this token: This service asks for the token of its operator."),
    ],
)
def test_a_token_that_is_none_changes_nothing(service: HttpServer, run: Run, typed: str, says: str) -> None:
    before = TokenCredentials("another", "http://127.0.0.1:1")
    write_credentials(before)
    done = run("login", "--token-stdin", "--url", service.url, typed=typed)
    assert done.returncode == 2
    assert says in done.stderr
    assert not typed.strip() or typed.strip() not in done.stderr
    assert read_credentials() == before


def test_a_token_for_a_backend_that_is_away_is_not_kept(run: Run) -> None:
    done = run("login", "--token-stdin", "--url", "http://127.0.0.1:1", typed=TOKEN)
    assert done.returncode == 2
    assert "cannot be reached" in done.stderr
    assert read_credentials() is None


def test_nobody_to_ask_for_the_token(service: HttpServer, run: Run) -> None:
    done = run("login", "--token", "--url", service.url)
    assert done.returncode == 2
    assert "--token-stdin" in done.stderr


def test_the_environment_of_ci(service: HttpServer, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    monkeypatch.setenv("ARKOR_CLOUD_API_URL", service.url)
    monkeypatch.setenv("ARKOR_TOKEN", TOKEN)
    assert run("jobs", "--json").stdout == "[]\n"
    assert run("whoami").stdout.splitlines()[0] == "owner, with the token in ARKOR_TOKEN"
    assert not credentials_path().exists()
    monkeypatch.setenv("ARKOR_TOKEN", "not-the-right-one")
    done = run("whoami")
    assert done.returncode == 2
    assert "rejects the token in ARKOR_TOKEN" in done.stderr
    assert "not-the-right-one" not in done.stderr


def test_the_token_of_the_environment_goes_nowhere_else(service: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARKOR_TOKEN", TOKEN)
    monkeypatch.setenv("ARKOR_CLOUD_API_URL", "https://api.example")
    with pytest.raises(CredentialsError, match="requires a token"):
        ensure_credentials(service.url)
    monkeypatch.delenv("ARKOR_CLOUD_API_URL")
    with pytest.raises(CredentialsError, match=r"arkor login --token --url http://127\.0\.0\.1"):
        ensure_credentials(service.url)
    assert not any(TOKEN in value for request in service.requests for value in request.headers.values())
    monkeypatch.setenv("ARKOR_TOKEN", "two words")
    monkeypatch.setenv("ARKOR_CLOUD_API_URL", service.url)
    with pytest.raises(CredentialsError, match="ARKOR_TOKEN") as caught:
        ensure_credentials()
    assert "two words" not in str(caught.value)


def test_without_a_token_the_way_in_is_named(service: HttpServer, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARKOR_CLOUD_API_URL", service.url)
    for command in (["jobs"], ["login", "--anonymous"]):
        done = run(*command)
        assert done.returncode == 2
        assert f"arkor login --token --url {service.url}" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_the_owner_of_a_real_backend(backend: Backend, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    token = json.loads((backend.home / "backend.json").read_text())["token"]
    monkeypatch.setenv("ARKOR_CLOUD_API_URL", backend.url)
    monkeypatch.setenv("ARKOR_TOKEN", token)
    done = run("jobs", "--json")
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
    assert json.loads(run("whoami", "--json").stdout)["mode"] == "token"


def test_an_identity_that_a_script_came_by_leads_nowhere(
    backend: Backend, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARKOR_CLOUD_API_URL", backend.url)
    assert run("jobs", "--json").stdout == "[]\n"
    found = read_credentials()
    assert isinstance(found, AnonymousCredentials)
    assert json.loads(run("whoami", "--json").stdout)["mode"] == "anon"
    monkeypatch.delenv("ARKOR_CLOUD_API_URL")
    output = run("whoami").stdout
    assert output.startswith("The owner of this machine's backend")
    assert f"is used only if ARKOR_CLOUD_API_URL is {backend.url}." in output
    asked_for = run("login", "--anonymous", "--url", backend.url)
    assert asked_for.stdout == f"Signed in to {backend.url} anonymously; the organisation is {found.org_slug}.\n"
    kept = read_credentials()
    assert isinstance(kept, AnonymousCredentials)
    assert (kept.token, kept.incidental) == (found.token, None)
    assert json.loads(run("whoami", "--json").stdout)["backend"] == {"url": backend.url, "why": "credentials file"}


@pytest.mark.usefixtures("fast_imports")
def test_the_doctor_looks_at_the_token(service: HttpServer, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARKOR_TOKEN", TOKEN)
    assert "ARKOR_TOKEN is set, but ARKOR_CLOUD_API_URL is not" in run("doctor").stdout
    monkeypatch.setenv("ARKOR_CLOUD_API_URL", service.url)
    assert "rejects the token" not in run("doctor").stdout
    monkeypatch.setenv("ARKOR_TOKEN", "one-that-was-changed")
    output = run("doctor").stdout
    assert "it rejects the token" in output
    assert f"arkor login --token --url {service.url}" in output
    assert "one-that-was-changed" not in output
