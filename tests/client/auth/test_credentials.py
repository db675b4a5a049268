"""Credentials: their file, and how they are obtained."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from arkor.client.auth.bootstrap import ensure_credentials, request_anonymous_token
from arkor.client.auth.credentials import (
    AnonymousCredentials,
    Credentials,
    OAuthCredentials,
    credentials_lock,
    credentials_path,
    default_cloud_api_url,
    read_credentials,
    remove_credentials,
    write_credentials,
)
from arkor.errors import ArkorError, BackendUnavailable, CloudApiError, CredentialsError
from arkor.settings import MANAGED_CLOUD_API_URL
from tests.conftest import Backend
from tests.fakes.http_server import Answer, HttpServer, Request

ANONYMOUS = AnonymousCredentials("secret-1", "anon-1", "https://api.example", "org-1")
OAUTH = OAuthCredentials("secret-1", "secret-2", 1_900_000_000, "login.example", "audience", "client")

IDENTITY = {
    "token": "t-1",
    "anonymousId": "a-1",
    "kind": "cli",
    "personalOrg": {"id": "o-1", "slug": "org-1", "name": "Org"},
}


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# The file


@pytest.mark.parametrize("credentials", [ANONYMOUS, OAUTH])
def test_what_is_written_is_read_again(credentials: Credentials) -> None:
    write_credentials(credentials)
    assert read_credentials() == credentials
    assert mode_of(credentials_path()) == 0o600
    assert mode_of(credentials_path().parent) == 0o700
    assert [file.name for file in credentials_path().parent.iterdir()] == ["credentials.json"]


def test_the_file_has_the_documented_format() -> None:
    write_credentials(ANONYMOUS)
    assert json.loads(credentials_path().read_text()) == {
        "mode": "anon",
        "token": "secret-1",
        "anonymousId": "anon-1",
        "arkorCloudApiUrl": "https://api.example",
        "orgSlug": "org-1",
    }
    write_credentials(OAUTH)
    written = json.loads(credentials_path().read_text())
    assert written["mode"] == "oauth"
    assert "arkorCloudApiUrl" not in written


@pytest.mark.parametrize("credentials", [ANONYMOUS, OAUTH])
def test_no_token_shows(credentials: Credentials) -> None:
    assert "secret" not in repr(credentials)


def test_a_missing_file_means_no_credentials() -> None:
    assert read_credentials() is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "{}",
        '{"mode": "else"}',
        '{"mode": []}',
        '{"mode": "anon"}',
        '{"mode": "anon", "token": 7, "anonymousId": "a", "arkorCloudApiUrl": "http://x", "orgSlug": "o"}',
        '{"mode": "anon", "token": "t", "anonymousId": "a", "arkorCloudApiUrl": 7, "orgSlug": "o"}',
        '{"mode": "anon", "token": "t", "anonymousId": "a", "arkorCloudApiUrl": "http://x", "orgSlug": ""}',
        "[" * 100_000,
        "\ud800",
    ],
)
def test_an_invalid_file_means_no_credentials(text: str) -> None:
    credentials_path().parent.mkdir()
    credentials_path().write_bytes(text.encode("utf-8", "surrogatepass"))
    assert read_credentials() is None


def test_credentials_of_an_older_typescript_client() -> None:
    write_credentials(OAUTH)
    written = json.loads(credentials_path().read_text())
    credentials_path().write_text(json.dumps({**written, "mode": "auth0"}))
    assert read_credentials() == OAUTH


def test_fields_of_a_newer_version_are_accepted() -> None:
    write_credentials(ANONYMOUS)
    data = {**json.loads(credentials_path().read_text()), "since": "2027"}
    credentials_path().write_text(json.dumps(data))
    assert read_credentials() == ANONYMOUS


def test_an_unreadable_file_is_named_and_kept() -> None:
    credentials_path().mkdir(parents=True)
    with pytest.raises(CredentialsError, match=str(credentials_path())):
        read_credentials()
    with HttpServer(Answer(body=IDENTITY)) as server, pytest.raises(CredentialsError):
        ensure_credentials(server.url)
    assert server.requests == []
    assert credentials_path().is_dir()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_named() -> None:
    write_credentials(ANONYMOUS)
    credentials_path().chmod(0)
    with pytest.raises(CredentialsError, match="Permission denied"):
        read_credentials()


def test_a_home_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ARKOR_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(CredentialsError, match=f"{tmp_path}.*ARKOR_HOME"):
        write_credentials(ANONYMOUS)


# Which backend


def test_the_default_url(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_cloud_api_url() == MANAGED_CLOUD_API_URL
    assert default_cloud_api_url(OAUTH) == MANAGED_CLOUD_API_URL
    assert default_cloud_api_url(ANONYMOUS) == "https://api.example"
    monkeypatch.setenv("ARKOR_CLOUD_API_URL", "http://self.example/")
    assert default_cloud_api_url(ANONYMOUS) == "http://self.example"


# Obtaining them


def test_requesting_an_anonymous_identity_stores_nothing() -> None:
    with HttpServer(Answer(201, IDENTITY)) as server:
        got = request_anonymous_token(server.url + "/", "web")
        assert got == AnonymousCredentials("t-1", "a-1", server.url, "org-1")
    (request,) = server.requests
    assert (request.method, request.path, request.json()) == ("POST", "/v1/auth/anonymous", {"kind": "web"})
    assert request.headers["x-arkor-client"].startswith("arkor/")
    assert read_credentials() is None


@pytest.mark.parametrize("body", [{}, {"token": "t"}, {**IDENTITY, "personalOrg": None}, {**IDENTITY, "token": None}])
def test_a_response_without_an_identity(body: object) -> None:
    with HttpServer(Answer(201, body)) as server, pytest.raises(CloudApiError, match="no anonymous identity"):
        ensure_credentials(server.url)
    assert read_credentials() is None


def test_ensure_obtains_and_stores_an_identity() -> None:
    with HttpServer(Answer(201, IDENTITY)) as server:
        first = ensure_credentials(server.url)
        assert ensure_credentials(server.url + "/") == ensure_credentials() == first == read_credentials()
    assert len(server.requests) == 1


def test_ensure_asks_the_backend_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with HttpServer(Answer(201, IDENTITY)) as server:
        monkeypatch.setenv("ARKOR_CLOUD_API_URL", server.url)
        assert ensure_credentials().arkor_cloud_api_url == server.url


def test_ensure_never_overwrites_credentials() -> None:
    write_credentials(ANONYMOUS)
    before = credentials_path().read_bytes()
    with HttpServer(Answer(201, IDENTITY)) as server, pytest.raises(CredentialsError) as caught:
        ensure_credentials(server.url)
    assert all(
        word in str(caught.value) for word in ("https://api.example", server.url, str(credentials_path()), "ARKOR_HOME")
    )
    assert server.requests == []
    assert credentials_path().read_bytes() == before


def test_ensure_replaces_an_invalid_file() -> None:
    credentials_path().parent.mkdir()
    credentials_path().write_text("{")
    with HttpServer(Answer(201, IDENTITY)) as server:
        assert ensure_credentials(server.url) == read_credentials()


def test_nothing_is_stored_without_a_response() -> None:
    with HttpServer(Answer(503, {"error": "Busy."})) as server, pytest.raises(ArkorError, match=r"Busy\."):
        ensure_credentials(server.url)
    with HttpServer(Answer(None)) as server, pytest.raises(BackendUnavailable):
        ensure_credentials(server.url)
    assert read_credentials() is None


class Bureau:
    """Issues a new identity to each client, once `together` have asked or a moment has passed."""

    def __init__(self, together: int) -> None:
        self._gate = threading.Barrier(together)
        self.given = 0

    def __call__(self, request: Request) -> Answer:
        with suppress(threading.BrokenBarrierError):
            self._gate.wait(0.5)
        self.given += 1
        return Answer(201, {**IDENTITY, "token": f"t-{self.given}"})


def test_concurrent_threads_get_one_identity() -> None:
    bureau = Bureau(4)
    with HttpServer(bureau) as server, ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda _: ensure_credentials(server.url), range(4)))
    assert set(got) == {read_credentials()}
    assert bureau.given == 1


def test_concurrent_processes_get_one_identity() -> None:
    bureau = Bureau(4)
    code = "import sys; from arkor import ensure_credentials; print(ensure_credentials(sys.argv[1]).token)"
    with HttpServer(bureau) as server:
        command = [sys.executable, "-c", code, server.url]
        processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
        got = [process.communicate(timeout=30)[0].strip() for process in processes]
    assert got == ["t-1"] * 4
    assert bureau.given == 1


def test_credentials_stored_meanwhile_are_used() -> None:
    with HttpServer(Answer(201, IDENTITY)) as server:
        mine = AnonymousCredentials("mine", "a", server.url, "org-1")
        with ThreadPoolExecutor(1) as pool:
            with credentials_lock():
                waiting = pool.submit(ensure_credentials, server.url)
                write_credentials(mine)
            assert waiting.result(10) == mine == read_credentials()
        assert server.requests == []


# Removing them


def test_credentials_are_removed() -> None:
    assert not remove_credentials()
    assert not credentials_path().parent.exists()
    write_credentials(ANONYMOUS)
    assert remove_credentials()
    assert read_credentials() is None
    assert not remove_credentials()


def test_credentials_that_cannot_be_removed() -> None:
    credentials_path().mkdir(parents=True)
    with pytest.raises(CredentialsError, match=f"{credentials_path()} cannot be removed"):
        remove_credentials()


def test_against_a_real_backend(backend: Backend) -> None:
    one, other = request_anonymous_token(backend.url), request_anonymous_token(backend.url)
    assert one.arkor_cloud_api_url == backend.url
    assert one.org_slug != other.org_slug
    assert one.token != other.token
