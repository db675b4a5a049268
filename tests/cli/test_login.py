"""`arkor login`, `logout` and `whoami`, with a real authorization server and a browser."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import requests
from attrs import define, evolve, field

from arkor.client.auth.credentials import (
    AnonymousCredentials,
    OAuthCredentials,
    credentials_path,
    read_credentials,
    write_credentials,
)
from tests.cli.conftest import ARKOR, Run
from tests.client.auth.test_browser_login import free_ports
from tests.conftest import Backend
from tests.fakes.authorization_server import AUDIENCE, CLIENT_ID, AuthorizationServer
from tests.fakes.http_server import Answer, HttpServer, Request

pytestmark = pytest.mark.slow  # every test starts processes of its own

BROWSER = "import pathlib, requests, sys; pathlib.Path(sys.argv[1]).write_text(requests.get(sys.argv[2]).text)\n"
ME = {"user": {"id": "u-1", "email": "ada@example"}, "orgs": [{"id": "o", "slug": "org-1", "name": "Org"}]}
NO_OAUTH = {"auth0Domain": None, "clientId": None, "audience": None, "callbackPorts": []}
REFUSED = Answer(401, {"error": "This needs a valid token."})
SAFE = AnonymousCredentials("anonymous-secret", "anon-1", "http://127.0.0.1:1", "org-of-nobody")


@define
class Cloud:
    """A backend with an authorization server: its token belongs to ada; others can be anonymous."""

    auth: AuthorizationServer
    ports: tuple[int, ...] = field(factory=lambda: free_ports(2))
    oauth: bool = True
    identities: int = 0

    def __call__(self, request: Request) -> Answer:
        if request.path == "/v1/auth/cli/config":
            there = {"auth0Domain": self.auth.domain, "clientId": CLIENT_ID, "audience": AUDIENCE}
            return Answer(body={**there, "callbackPorts": list(self.ports)} if self.oauth else NO_OAUTH)
        if request.path == "/v1/auth/anonymous":
            self.identities += 1
            org = {"id": "o", "slug": f"anon-org-{self.identities}", "name": "Org"}
            return Answer(201, {"token": "anon-secret", "anonymousId": "a", "kind": "cli", "personalOrg": org})
        if request.headers.get("authorization") == "Bearer anon-secret":
            return Answer(body={"user": {"id": "a", "email": None, "token": "anon-secret"}, "orgs": ME["orgs"]})
        return Answer(body=ME) if self.auth.accepts(request.headers) else REFUSED


@pytest.fixture
def auth() -> Iterator[AuthorizationServer]:
    with AuthorizationServer() as server:
        yield server


@pytest.fixture
def cloud(auth: AuthorizationServer) -> Cloud:
    return Cloud(auth)


@pytest.fixture
def server(cloud: Cloud) -> Iterator[HttpServer]:
    with HttpServer(cloud) as running:
        yield running


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page that the browser, a process that follows redirects, shows in the end."""
    (tmp_path / "browser.py").write_text(BROWSER)
    page = tmp_path / "page.html"
    monkeypatch.setenv("BROWSER", f"{sys.executable} {tmp_path}/browser.py {page} %s")
    return page


Typing = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def at_terminal(project: Path) -> Typing:
    """`at_terminal("login", typed="1\\n")`: run a command with a terminal as standard input."""

    def call(*arguments: str, typed: str = "") -> subprocess.CompletedProcess[str]:
        keyboard, terminal = pty.openpty()
        try:
            os.write(keyboard, typed.encode())
            command = [*ARKOR, *arguments]
            return subprocess.run(
                command, cwd=project, stdin=terminal, capture_output=True, text=True, timeout=60, check=False
            )
        finally:
            os.close(keyboard)
            os.close(terminal)

    return call


def unshown(done: subprocess.CompletedProcess[str], auth: AuthorizationServer) -> str:
    """Return the output of a command, after checking that it has no secret and no traceback."""
    text = done.stdout + done.stderr
    assert not [secret for secret in (*auth.secrets, "anon-secret", SAFE.token) if secret in text]
    assert "Traceback" not in text
    assert "\x1b" not in text
    return text


# OAuth


def test_a_person_signs_in(auth: AuthorizationServer, server: HttpServer, page: Path, run_anew: Run) -> None:
    done = run_anew("login", "--oauth", "--url", server.url + "/")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"Signed in to {server.url} as ada@example.\n"
    assert f"http://{auth.domain}/authorize?response_type=code" in done.stderr
    unshown(done, auth)
    found = read_credentials()
    assert isinstance(found, OAuthCredentials)
    assert (found.access_token, found.arkor_cloud_api_url) == (auth.tokens[0].access_token, server.url)
    assert credentials_path().stat().st_mode & 0o777 == 0o600
    assert "You can close this page" in page.read_text()


def test_from_then_on_it_is_used(auth: AuthorizationServer, server: HttpServer, page: Path, run: Run) -> None:
    run("login", "--oauth", "--url", server.url)
    output = run("whoami")
    assert output.stdout.splitlines() == [
        "ada@example",
        "Organisations: org-1",
        f"Backend: {server.url}, because of the sign-in in {credentials_path()}",
    ]
    report = json.loads(run("whoami", "--json").stdout)
    assert report == {
        "mode": "oauth",
        "user": {"id": "u-1", "email": "ada@example"},
        "orgs": ME["orgs"],
        "backend": {"url": server.url, "why": "credentials file"},
    }
    auth.expire_all()
    assert run("whoami").stdout == output.stdout
    unshown(output, auth)


def test_without_a_browser_the_address_is_printed(
    auth: AuthorizationServer, cloud: Cloud, server: HttpServer, project: Path
) -> None:
    command = [*ARKOR, "login", "--no-browser", "--url", server.url]
    with subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        said = []
        for line in process.stderr or ():
            said.append(line.strip())
            if "Waiting" in line:
                break
        (address,) = (line for line in said if line.startswith("http"))
        assert any(f"ssh -L {cloud.ports[0]}:127.0.0.1:{cloud.ports[0]}" in line for line in said)
        assert requests.get(address, timeout=10).status_code == 200
        output, _ = process.communicate(timeout=20)
    assert (process.returncode, output) == (0, f"Signed in to {server.url} as ada@example.\n")


def test_a_person_who_says_no(auth: AuthorizationServer, server: HttpServer, page: Path, run: Run) -> None:
    auth.consents = False
    write_credentials(SAFE)
    done = run("login", "--oauth", "--url", server.url)
    assert done.returncode == 2
    assert "you are not signed in: access was denied" in unshown(done, auth)
    assert "Login failed: access was denied" in page.read_text()
    assert read_credentials() == SAFE


def test_all_ports_taken(auth: AuthorizationServer, cloud: Cloud, server: HttpServer, run: Run) -> None:
    cloud.ports = cloud.ports[:1]
    with closing(socket.create_server(("127.0.0.1", cloud.ports[0]))):
        done = run("login", "--oauth", "--url", server.url)
    assert done.returncode == 2
    assert f"ports {cloud.ports[0]} of this machine, but all of them are in use" in unshown(done, auth)


def test_a_token_that_the_backend_refuses_is_not_kept(
    auth: AuthorizationServer, cloud: Cloud, page: Path, run: Run
) -> None:
    def stubborn(request: Request) -> Answer:
        return REFUSED if request.path == "/v1/me" else cloud(request)

    with HttpServer(stubborn) as server:
        done = run("login", "--oauth", "--url", server.url)
    assert done.returncode == 2
    assert "This needs a valid token." in unshown(done, auth)
    assert read_credentials() is None


def test_ctrl_c_leaves_at_once(server: HttpServer, cloud: Cloud, project: Path) -> None:
    command = [*ARKOR, "login", "--no-browser", "--url", server.url]
    with subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr or ():
            if "Waiting" in line:
                break
        process.send_signal(signal.SIGINT)
        output, said = process.communicate(timeout=20)
    assert (process.returncode, output) == (130, "")
    assert "Traceback" not in said
    assert read_credentials() is None


@pytest.mark.parametrize("flags", [["--oauth"], ["--no-browser"]])
def test_in_ci_nobody_sits_at_a_browser(
    server: HttpServer, run: Run, monkeypatch: pytest.MonkeyPatch, flags: list[str]
) -> None:
    monkeypatch.setenv("CI", "true")
    done = run("login", *flags, "--url", server.url)
    assert done.returncode == 2
    assert "--oauth needs a browser, and CI is set" in done.stderr
    assert "sign-in method (CI is set): use --oauth" in run("login", "--url", server.url).stderr
    assert server.requests == []
    assert run("login", "--anonymous", "--url", server.url).returncode == 0


# Anonymous identities, and choosing a method


def test_a_backend_without_oauth_says_so(cloud: Cloud, server: HttpServer, run: Run) -> None:
    cloud.oauth = False
    done = run("login", "--oauth", "--url", server.url)
    assert done.returncode == 2
    assert f"has no user accounts. Sign in anonymously: arkor login --anonymous --url {server.url}" in done.stderr
    assert read_credentials() is None


def test_anonymously_at_a_real_backend(backend: Backend, run: Run, auth: AuthorizationServer) -> None:
    done = run("login", "--anonymous", "--url", backend.url)
    found = read_credentials()
    assert isinstance(found, AnonymousCredentials)
    assert done.stdout == f"Signed in to {backend.url} anonymously; the organisation is {found.org_slug}.\n"
    output = run("whoami")
    assert output.stdout.splitlines()[0].startswith("Anonymous identity ")
    assert f"Organisations: {found.org_slug}" in output.stdout
    assert found.token not in done.stdout + done.stderr + output.stdout + run("whoami", "--json").stdout
    refused = run("login", "--oauth", "--url", backend.url)
    assert "has no user accounts" in refused.stderr
    assert read_credentials() == found


def test_nobody_to_ask(server: HttpServer, run: Run) -> None:
    done = run("login", "--url", server.url)
    assert done.returncode == 2
    assert "use --oauth (a user), --anonymous, or --token-stdin" in done.stderr


def test_two_ways_at_once(server: HttpServer, run: Run) -> None:
    assert run("login", "--oauth", "--anonymous", "--url", server.url).returncode == 2
    assert run("login", "--no-browser", "--anonymous", "--url", server.url).returncode == 2
    assert run("login", "--token-stdin", "--anonymous", "--url", server.url).returncode == 2
    assert server.requests == []


@pytest.mark.parametrize("url", ["", "example", "ftp://x", "http://u:p@x"])
def test_an_address_that_is_none(url: str, run: Run) -> None:
    done = run("login", "--anonymous", "--url", url)
    assert done.returncode == 2
    assert "Invalid value for --url" in done.stderr


@pytest.mark.parametrize(
    ("typed", "who"), [("1\n", "as ada@example"), ("\n", "as ada@example"), ("2\n", "anonymously")]
)
def test_a_terminal_is_asked(server: HttpServer, page: Path, at_terminal: Typing, typed: str, who: str) -> None:
    done = at_terminal("login", "--url", server.url, typed=typed)
    assert done.returncode == 0, done.stderr
    assert f"How do you want to sign in to {server.url}?" in done.stdout
    assert f"Signed in to {server.url} {who}" in done.stdout


def test_a_terminal_is_offered_what_there_is(cloud: Cloud, server: HttpServer, at_terminal: Typing) -> None:
    cloud.oauth = False
    done = at_terminal("login", "--url", server.url, typed="3\n1\n")
    assert done.returncode == 0
    assert "(It has no user accounts.)" in done.stdout
    assert "3' is not one of '1', '2'" in done.stdout
    assert isinstance(read_credentials(), AnonymousCredentials)


def test_the_backend_of_the_environment(
    auth: AuthorizationServer, server: HttpServer, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARKOR_CLOUD_API_URL", server.url)
    assert run("login", "--anonymous").stdout.startswith(f"Signed in to {server.url} ")
    with HttpServer(Cloud(auth)) as other:
        done = run("login", "--anonymous", "--url", other.url)
    assert f"ARKOR_CLOUD_API_URL takes precedence and is {server.url}" in done.stderr


# Replacing a sign-in


def test_whose_sign_in_is_replaced(auth: AuthorizationServer, server: HttpServer, run: Run) -> None:
    write_credentials(auth.sign_in(server.url))
    done = run("login", "--anonymous", "--url", server.url)
    assert f"This replaces the sign-in of ada@example at {server.url}." in done.stderr
    first = read_credentials()
    done = run("login", "--anonymous")  # at the backend of the old sign-in
    assert f"This replaces the anonymous sign-in at {server.url}." in done.stderr
    assert "the runs of its organisation anon-org-1 cannot be reached any more" in done.stderr
    assert read_credentials() != first


def test_a_terminal_may_think_better_of_it(server: HttpServer, at_terminal: Typing) -> None:
    write_credentials(SAFE)
    done = at_terminal("login", "--anonymous", "--url", server.url, typed="n\n")
    assert (done.returncode, read_credentials()) == (1, SAFE)
    assert server.requests == []


def test_a_file_that_cannot_be_read_is_left_alone(server: HttpServer, run: Run) -> None:
    credentials_path().mkdir(parents=True)
    for command in (["login", "--anonymous", "--url", server.url], ["logout", "-f"], ["whoami"]):
        done = run(*command)
        assert done.returncode == 2
        assert f"{credentials_path()} cannot be read" in done.stderr
    assert credentials_path().is_dir()


# Signing out


def test_signing_out(run: Run, run_anew: Run, auth: AuthorizationServer) -> None:
    assert run("logout").stdout == "You are not signed in.\n"
    write_credentials(SAFE)
    done = run_anew("logout")
    assert (done.returncode, done.stdout) == (0, f"Signed out of {SAFE.arkor_cloud_api_url}.\n")
    assert "the runs of its organisation org-of-nobody cannot be reached any more" in unshown(done, auth)
    assert not credentials_path().exists()


def test_programs_get_json_without_a_secret(
    backend: Backend, auth: AuthorizationServer, server: HttpServer, page: Path, run: Run
) -> None:
    login = run("login", "--anonymous", "--url", backend.url, "--json")
    found = read_credentials()
    assert isinstance(found, AnonymousCredentials)
    assert json.loads(login.stdout) == json.loads(run("whoami", "--json").stdout)
    assert json.loads(login.stdout)["backend"] == {"url": backend.url, "why": "credentials file"}
    assert "Signed in to" in login.stderr

    person = run("login", "--oauth", "--url", server.url, "--json")
    assert json.loads(person.stdout)["user"] == ME["user"]
    assert json.loads(person.stdout)["mode"] == "oauth"
    unshown(person, auth)
    logout = run("logout", "--json")
    assert json.loads(logout.stdout) == {"removed": True, "mode": "oauth", "url": server.url}
    assert json.loads(run("logout", "--json").stdout) == {"removed": False, "mode": None, "url": None}
    for done in (login, person, logout):
        assert found.token not in done.stdout + done.stderr


def test_a_person_who_says_no_to_a_question_for_a_program(at_terminal: Typing) -> None:
    write_credentials(SAFE)
    done = at_terminal("logout", "--json", typed="n\n")
    assert (done.returncode, done.stdout) == (1, "")
    assert "Continue?" in done.stderr


def test_a_terminal_is_asked_before(at_terminal: Typing, auth: AuthorizationServer, server: HttpServer) -> None:
    write_credentials(SAFE)
    done = at_terminal("logout", typed="n\n")
    assert (done.returncode, read_credentials()) == (1, SAFE)
    assert "the runs of its organisation org-of-nobody cannot be reached any more" in done.stderr
    assert at_terminal("logout", typed="y\n").returncode == 0
    assert read_credentials() is None
    write_credentials(auth.sign_in(server.url))
    payload = at_terminal("logout", typed="n\n")
    assert f"This removes the sign-in of ada@example at {server.url}." in unshown(payload, auth)
    assert at_terminal("logout", "-f").returncode == 0
    assert read_credentials() is None


def test_a_file_that_makes_no_sense_is_removed(run: Run) -> None:
    credentials_path().parent.mkdir()
    credentials_path().write_text("{")
    assert run("logout").stdout == f"Removed {credentials_path()}, which was invalid.\n"
    assert not credentials_path().exists()


# whoami


def test_this_machine_where_no_backend_runs(run: Run, run_anew: Run, tmp_path: Path) -> None:
    done = run_anew("whoami")
    assert done.stdout.splitlines() == [
        "The owner of this machine's backend, which needs no sign-in",
        "Backend: this machine (not running; it is started when needed), "
        "the default without ARKOR_CLOUD_API_URL and without a sign-in",
    ]
    report = json.loads(run("whoami", "--json").stdout)
    assert report["backend"] == {"url": None, "why": "embedded", "running": False}
    assert not (tmp_path / "arkor-home").exists()


def test_this_machine_where_one_runs(backend: Backend, run: Run) -> None:
    output = run("whoami").stdout
    assert "Organisations: local" in output
    assert f"Backend: this machine ({backend.url})" in output
    report = json.loads(run("whoami", "--json").stdout)
    assert report["mode"] == "embedded"
    assert report["backend"] == {"url": backend.url, "why": "embedded", "running": True}
    assert [org["slug"] for org in report["orgs"]] == ["local"]
    assert backend.token not in output + json.dumps(report)


def test_nobody_is_signed_in_by_asking(server: HttpServer, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARKOR_CLOUD_API_URL", server.url)
    done = run("whoami")
    assert done.returncode == 0
    assert done.stdout.startswith("Not signed in: the first call creates an anonymous identity")
    assert f"Backend: {server.url}, because of ARKOR_CLOUD_API_URL" in done.stdout
    assert json.loads(run("whoami", "--json").stdout)["mode"] is None
    assert (server.requests, read_credentials()) == ([], None)


def test_a_sign_in_for_another_backend(server: HttpServer, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARKOR_CLOUD_API_URL", server.url)
    write_credentials(SAFE)
    done = run("whoami")
    assert done.returncode == 2
    assert f"you are signed in to {SAFE.arkor_cloud_api_url}, not to {server.url}" in done.stderr
    assert server.requests == []


def test_a_sign_in_that_is_good_no_more(auth: AuthorizationServer, server: HttpServer, run: Run) -> None:
    write_credentials(evolve(SAFE, arkor_cloud_api_url=server.url))
    done = run("whoami")
    assert done.returncode == 2
    assert "does not accept your sign-in any more" in unshown(done, auth)
    assert "sign in again: arkor login" in done.stderr
