"""Renewing OAuth credentials against a real authorization server."""

from __future__ import annotations

import json
import logging
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import parse_qs

import pytest
from attrs import evolve

from arkor import ReconnectPolicy, Trainer
from arkor.client.auth.credentials import (
    AnonymousCredentials,
    OAuthCredentials,
    credentials_path,
    read_credentials,
    write_credentials,
)
from arkor.client.auth.oauth import OAuthAuth, auth_for, authorization_server, refresh
from arkor.client.connect import connect
from arkor.client.http.auth import Auth
from arkor.client.http.client import HttpClient
from arkor.client.project_state import ProjectState, write_state
from arkor.errors import BackendUnavailable, CloudApiError, CredentialsError, TrainerAborted
from tests.fakes.authorization_server import AuthorizationServer
from tests.fakes.http_server import Answer, HttpServer
from tests.fakes.sse_server import END_FRAME, ScriptedServer, Step, answer, frame, log_frame, send

REFUSED = Answer(401, {"error": "The token has expired."})


@pytest.fixture
def auth() -> Iterator[AuthorizationServer]:
    with AuthorizationServer() as server:
        yield server


@pytest.fixture
def api(auth: AuthorizationServer) -> Iterator[HttpServer]:
    """A backend that accepts the newest token of a sign-in and answers 401 to any other."""
    with HttpServer(lambda request: Answer(body={"ok": True}) if auth.accepts(request.headers) else REFUSED) as server:
        yield server


def expired(auth: AuthorizationServer, url: str) -> OAuthCredentials:
    """Credentials whose token is rejected although it expires in an hour."""
    credentials = auth.sign_in(url)
    auth.expire_all()
    return credentials


def called(access: Auth) -> object:
    return HttpClient(access, retry_budget=0).call("GET", "/v1/x")


# Once


def test_a_rejected_token_is_renewed_and_the_call_repeated(auth: AuthorizationServer, api: HttpServer) -> None:
    old = expired(auth, api.url)
    access = OAuthAuth(api.url, old)
    assert called(access) == called(access) == {"ok": True}
    (request,) = auth.requests
    assert parse_qs(request.body.decode()) == {
        "grant_type": ["refresh_token"],
        "client_id": [old.client_id],
        "refresh_token": [old.refresh_token],
    }
    assert "authorization" not in request.headers
    assert [auth.accepts(request.headers) for request in api.requests] == [False, True, True]


def test_a_token_that_expires_within_a_minute_is_renewed_first(auth: AuthorizationServer, api: HttpServer) -> None:
    assert called(OAuthAuth(api.url, auth.sign_in(seconds_left=50))) == {"ok": True}
    assert (len(auth.requests), len(api.requests)) == (1, 1)
    assert called(OAuthAuth(api.url, auth.sign_in(seconds_left=70))) == {"ok": True}
    assert (len(auth.requests), len(api.requests)) == (1, 2)


def test_a_renewed_token_that_is_rejected_is_an_error(auth: AuthorizationServer) -> None:
    with HttpServer(REFUSED) as api, pytest.raises(CloudApiError, match="has expired") as caught:
        called(OAuthAuth(api.url, auth.sign_in()))
    assert caught.value.status == 401
    assert (len(auth.requests), len(api.requests)) == (1, 2)


def test_an_unreachable_backend_causes_no_renewal(auth: AuthorizationServer) -> None:
    with pytest.raises(BackendUnavailable, match="cannot be reached"):
        called(OAuthAuth("http://127.0.0.1:1", auth.sign_in()))
    assert auth.requests == []


def test_ten_threads_renew_once(api: HttpServer, auth: AuthorizationServer) -> None:
    auth.delay = 0.2
    http = HttpClient(OAuthAuth(api.url, expired(auth, api.url)))
    barrier = threading.Barrier(10)

    def call(_: int) -> object:
        barrier.wait()
        return http.call("GET", "/v1/x")

    with ThreadPoolExecutor(10) as pool:
        assert list(pool.map(call, range(10))) == [{"ok": True}] * 10
    assert len(auth.requests) == 1


def test_clients_of_one_process_share_a_renewal(auth: AuthorizationServer, api: HttpServer) -> None:
    credentials = expired(auth, api.url)
    first, second = (OAuthAuth(api.url, credentials) for _ in range(2))
    assert called(first) == called(second) == called(OAuthAuth(api.url, credentials)) == {"ok": True}
    assert len(auth.requests) == 1


PROCESS = """
import sys
from arkor.client.auth.credentials import read_credentials
from arkor.client.http.client import HttpClient
from arkor.client.auth.oauth import auth_for
http = HttpClient(auth_for(sys.argv[1], read_credentials(), from_file=True))
print("ready", flush=True)
sys.stdin.readline()
print(http.call("GET", "/v1/x"))
"""


def test_processes_renew_once(auth: AuthorizationServer, api: HttpServer) -> None:
    auth.delay = 0.3
    write_credentials(expired(auth, api.url))
    command = [sys.executable, "-c", PROCESS, api.url]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(3)]  # type: ignore[call-overload]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 3
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    output = [process.communicate(timeout=30) for process in processes]
    assert output == [("{'ok': True}\n", "")] * 3
    assert len(auth.requests) == 1
    found = read_credentials()
    assert found is not None
    assert auth.accepts({"authorization": f"Bearer {found.bearer}"})


def test_a_process_forked_during_a_renewal_renews_by_itself() -> None:
    code = """
import os, threading
from arkor.client.auth import oauth
held, done = threading.Event(), threading.Event()
def hold():
    with oauth._refresh_lock:
        held.set()
        done.wait()
threading.Thread(target=hold).start()
held.wait()
child = os.fork()
if not child:
    os._exit(0 if oauth._refresh_lock.acquire(timeout=1) else 1)
done.set()
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "0\n"


# Storing


def test_renewed_credentials_are_stored(auth: AuthorizationServer, api: HttpServer) -> None:
    old = expired(auth, api.url)
    write_credentials(old)
    called(auth_for(api.url, old, from_file=True))
    new = read_credentials()
    assert isinstance(new, OAuthCredentials)
    assert auth.accepts({"authorization": f"Bearer {new.access_token}"})
    assert new.refresh_token == auth.tokens[-1].refresh_token != old.refresh_token
    assert new.expires_at == pytest.approx(time.time() + 3600, abs=10)
    kept = ("access_token", "refresh_token", "expires_at")
    assert evolve(new, **{name: getattr(old, name) for name in kept}) == old
    assert stat.S_IMODE(credentials_path().stat().st_mode) == 0o600


def test_a_refresh_token_that_is_not_rotated_is_kept(auth: AuthorizationServer) -> None:
    old = auth.sign_in()
    auth.faults = [Answer(body={"access_token": "new", "token_type": "Bearer", "expires_in": 60})]
    new = refresh(old)
    assert (new.access_token, new.refresh_token) == ("new", old.refresh_token)


def test_credentials_passed_by_the_caller_are_not_stored(auth: AuthorizationServer, api: HttpServer) -> None:
    called(auth_for(api.url, expired(auth, api.url)))
    assert read_credentials() is None
    other = AnonymousCredentials("t", "a", api.url, "org-1")
    write_credentials(other)
    called(auth_for(api.url, expired(auth, api.url)))
    assert read_credentials() == other


def test_stored_credentials_passed_by_the_caller_are_stored(auth: AuthorizationServer, api: HttpServer) -> None:
    write_credentials(expired(auth, api.url))
    called(auth_for(api.url, read_credentials()))
    found = read_credentials()
    assert found is not None
    assert auth.accepts({"authorization": f"Bearer {found.bearer}"})


@pytest.mark.parametrize("meanwhile", ["signed out", "signed in to another backend"])
def test_credentials_of_another_login_are_never_overwritten(
    auth: AuthorizationServer, api: HttpServer, meanwhile: str
) -> None:
    old = expired(auth, api.url)
    write_credentials(old)
    access = auth_for(api.url, old, from_file=True)
    credentials_path().unlink()
    other = None if meanwhile == "signed out" else auth.sign_in("https://elsewhere.example")
    if other:
        write_credentials(other)
    assert called(access) == {"ok": True}
    assert read_credentials() == other


def test_a_new_login_for_the_same_backend_is_used(auth: AuthorizationServer, api: HttpServer) -> None:
    old = expired(auth, api.url)
    write_credentials(old)
    access = auth_for(api.url, old, from_file=True)
    auth.ended.add(auth.tokens[-1].family)
    write_credentials(auth.sign_in(api.url))
    assert called(access) == {"ok": True}
    assert auth.requests == []


def test_an_expired_token_of_another_process_is_renewed(auth: AuthorizationServer, api: HttpServer) -> None:
    first = expired(auth, api.url)
    access = auth_for(api.url, first, from_file=True)
    write_credentials(evolve(auth.sign_in(api.url), expires_at=time.time() - 7200))
    auth.expire_all()
    assert called(access) == {"ok": True}
    assert parse_qs(auth.requests[0].body.decode())["refresh_token"] == [auth.tokens[1].refresh_token]


def test_connect_stores_renewals_of_stored_credentials(
    auth: AuthorizationServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_state(ProjectState("org-1", "bot", "p-1"))
    me = {"user": {"id": "u", "email": "a@example"}, "orgs": [{"id": "o", "slug": "org-1", "name": "Org"}]}
    with HttpServer(lambda request: Answer(body=me) if auth.accepts(request.headers) else REFUSED) as api:
        old = expired(auth, api.url)
        write_credentials(old)
        assert connect().me().orgs[0].slug == "org-1"
        after = read_credentials()
        assert after != old
        write_credentials(old)
        connect(credentials=expired(auth, api.url))
        assert read_credentials() == old


# Failures


def message_of(error: pytest.ExceptionInfo[BaseException], auth: AuthorizationServer) -> str:
    """Return the message of the error, which must contain no secret."""
    text = f"{error.value!s} {error.value!r} {error.getrepr()}"
    assert not [secret for secret in auth.secrets if secret in text]
    return str(error.value)


def test_an_expired_sign_in_is_reported_and_requested_once(auth: AuthorizationServer, api: HttpServer) -> None:
    access = OAuthAuth(api.url, expired(auth, api.url))
    auth.ended.add(auth.tokens[0].family)
    for _ in range(3):
        with pytest.raises(CredentialsError) as caught:
            called(access)
        assert message_of(caught, auth).endswith("answered invalid_grant); sign in again: arkor login --oauth")
    assert len(auth.requests) == 1


def test_a_sign_in_without_a_refresh_token(auth: AuthorizationServer, api: HttpServer) -> None:
    with pytest.raises(CredentialsError, match="has no refresh token; sign in again"):
        called(OAuthAuth(api.url, evolve(expired(auth, api.url), refresh_token="")))
    assert auth.requests == []


@pytest.mark.parametrize("status", [200, 301, 302, 403, 404, 408, 429, 500, 502, 503])
def test_other_responses_are_transient(auth: AuthorizationServer, status: int) -> None:
    page = Answer(status, b"<html>Sign in to this network</html>", {"Location": "http://127.0.0.1:1/"})
    auth.faults = [page, Answer(status, b"[" * 50_000)]
    credentials = auth.sign_in()
    for _ in range(2):
        with pytest.raises(BackendUnavailable, match=rf"renews your sign-in, answered {status} without a token"):
            refresh(credentials)
    assert refresh(credentials).access_token == auth.tokens[-1].access_token


@pytest.mark.parametrize("token", [None, "", 7, "a b", "a\nb"])
def test_a_malformed_token_is_rejected(auth: AuthorizationServer, token: object) -> None:
    auth.faults = [Answer(body={"access_token": token})]
    with pytest.raises((BackendUnavailable, CredentialsError)):
        refresh(auth.sign_in())


def test_an_authorization_server_that_cannot_be_reached(auth: AuthorizationServer) -> None:
    auth.faults = [Answer(None)]
    with pytest.raises(BackendUnavailable, match="renews your sign-in, closed the connection early") as caught:
        refresh(auth.sign_in())
    message_of(caught, auth)
    with pytest.raises(BackendUnavailable, match="renews your sign-in, cannot be reached") as caught:
        refresh(evolve(auth.sign_in(), auth0_domain="127.0.0.1:1"))
    message_of(caught, auth)


def test_an_error_description_that_quotes_the_token_is_hidden(auth: AuthorizationServer) -> None:
    credentials = auth.sign_in()
    quoting = {"error": f"no_{credentials.refresh_token}", "error_description": credentials.refresh_token}
    auth.faults = [Answer(400, quoting)]
    with pytest.raises(CredentialsError) as caught:
        refresh(credentials)
    message_of(caught, auth)


def test_a_failed_renewal_is_ignored_while_the_token_is_valid(auth: AuthorizationServer, api: HttpServer) -> None:
    auth.faults = [Answer(503)]
    access = OAuthAuth(api.url, auth.sign_in(seconds_left=30))
    assert called(access) == called(access) == {"ok": True}
    assert len(auth.requests) == 1  # not tried again with every call


@pytest.mark.parametrize(
    ("expires_in", "seconds"), [(120, 120), (None, 3600), ("60", 3600), (True, 3600), (-1, 3600), (10**400, 10 * 365 * 86400)]
)  # fmt: skip
def test_any_lifetime_is_accepted(auth: AuthorizationServer, expires_in: object, seconds: float) -> None:
    auth.faults = [Answer(body={"access_token": "new", "expires_in": expires_in})]
    assert refresh(auth.sign_in()).expires_at == pytest.approx(time.time() + seconds, abs=10)


def test_short_lived_tokens_are_not_renewed_with_every_call() -> None:
    with AuthorizationServer(lifetime=20) as auth:
        access = OAuthAuth("http://127.0.0.1:1", auth.sign_in(seconds_left=0))
        for _ in range(20):
            access.prepare()
    assert len(auth.requests) == 1


@pytest.mark.parametrize(
    ("domain", "url"),
    [
        ("login.example", "https://login.example"),
        ("login.example:8443", "https://login.example:8443"),
        ("127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("localhost:8080", "http://localhost:8080"),
        ("[::1]:8080", "http://[::1]:8080"),
        ("127.0.0.1.example", "https://127.0.0.1.example"),
        ("localhost.example", "https://localhost.example"),
    ],
)
def test_only_loopback_is_used_without_tls(domain: str, url: str) -> None:
    assert authorization_server(domain) == url


@pytest.mark.parametrize(
    "domain", ["", "a b", "a\nb", "a/b", "http://a", "a?b", "a#b", "user@a", "a:b", "[", "[::1", "a\\b", "127.0.0.1@b"]
)
def test_an_invalid_domain(domain: str) -> None:
    with pytest.raises(CredentialsError, match="is not a host name"):
        authorization_server(domain)


def test_the_refresh_token_follows_no_redirect(auth: AuthorizationServer) -> None:
    with HttpServer(Answer(body={"access_token": "stolen"})) as thief:
        auth.faults = [Answer(307, b"", {"Location": f"{thief.url}/oauth/token"})]
        with pytest.raises(BackendUnavailable, match="307"):
            refresh(auth.sign_in())
    assert thief.requests == []


def test_no_secret_shows(auth: AuthorizationServer, api: HttpServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    credentials = expired(auth, api.url)
    access = OAuthAuth(api.url, credentials)
    called(access)
    auth.faults = [Answer(503)]
    with pytest.raises(BackendUnavailable):
        access.refresh_token(access.token)
    assert "the sign-in was renewed" in caplog.text
    shown = f"{caplog.text} {access!r} {access!s} {credentials!r} {HttpClient(access)!r}"
    assert not [secret for secret in auth.secrets if secret in shown]


# During a run


ME = {"user": {"id": "u", "email": "a@example"}, "orgs": [{"id": "o", "slug": "org-1", "name": "Org"}]}
JOB = {
    "id": "j", "orgId": "o", "projectId": "p", "name": "n", "status": "running", "createdAt": "2027-01-01T00:00:00Z",
    "config": {"model": "m", "datasetSource": {"type": "huggingface", "name": "d"}},
}  # fmt: skip
COMPLETED = frame(4, "training.completed", '{"type":"training.completed","jobId":"j","timestamp":"t"}')


def said(body: object, status: int = 200) -> Step:
    return answer(status, json.dumps(body).encode())


def then(step: Step, action: Callable[[], object]) -> Step:
    def both(connection: object, headers: dict[str, str]) -> None:
        step(connection, headers)  # type: ignore[arg-type]
        action()

    return both


Watch = Callable[[str, "list[int]"], Trainer]


@pytest.fixture
def watch(tmp_path: Path, auth: AuthorizationServer) -> Watch:
    write_state(ProjectState("org-1", "bot", "p-1"), tmp_path)

    def trainer(url: str, steps: list[int]) -> Trainer:
        return Trainer.attach(
            "j",
            callbacks={"on_log": lambda log: steps.append(log.step)},
            credentials=auth.sign_in(url),
            reconnect=ReconnectPolicy(0.01, 0.05),
            progress=False,
            project_dir=tmp_path,
        )

    return trainer


def test_a_run_is_watched_beyond_the_expiry_of_a_token(auth: AuthorizationServer, watch: Watch) -> None:
    first = then(send(log_frame(1), log_frame(2)), auth.expire_all)
    last = send(log_frame(2), log_frame(3), COMPLETED, END_FRAME)
    with ScriptedServer(said(ME), said({"job": JOB}), first, said({"error": "expired"}, 401), last) as server:
        steps: list[int] = []
        assert watch(server.url, steps).wait(timeout=20).job.status == "completed"
    assert steps == [1, 2, 3]
    assert len(auth.requests) == 1
    assert [request.get("last-event-id") for request in server.requests[2:]] == [None, "2", "2"]
    refused, accepted = server.requests[3]["authorization"], server.requests[4]["authorization"]
    assert refused != accepted == f"Bearer {auth.tokens[-1].access_token}"


def test_a_sign_in_that_expires_during_a_run(auth: AuthorizationServer, watch: Watch) -> None:
    def end() -> None:
        auth.expire_all()
        auth.ended.add(auth.tokens[0].family)

    with ScriptedServer(said(ME), said({"job": JOB}), then(send(log_frame(1)), end), said({}, 401)) as server:
        steps: list[int] = []
        with pytest.raises(CredentialsError, match="sign in again: arkor login --oauth") as caught:
            watch(server.url, steps).wait(timeout=20)
    message_of(caught, auth)
    assert steps == [1]


def test_a_temporary_failure_of_the_authorization_server(
    auth: AuthorizationServer, watch: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    auth.faults = [Answer(503), Answer(None), Answer(200, b"<html>")]
    first = then(send(log_frame(1), log_frame(2)), auth.expire_all)
    refused = said({"error": "expired"}, 401)
    last = send(log_frame(3), COMPLETED, END_FRAME)
    with ScriptedServer(said(ME), said({"job": JOB}), first, *[refused] * 4, last) as server:
        steps: list[int] = []
        watch(server.url, steps).wait(timeout=20)
    assert steps == [1, 2, 3]
    assert len(auth.requests) == 4
    faults = [r.getMessage() for r in caplog.records if r.name == "arkor" and r.levelno == logging.WARNING]
    assert len(faults) == 3
    assert all("which renews your sign-in" in text and "reconnecting in" in text for text in faults)
    assert not [secret for secret in auth.secrets if secret in caplog.text]


def test_a_token_about_to_expire_is_renewed_before_reconnecting(
    auth: AuthorizationServer, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.time

    def an_hour_later() -> None:
        monkeypatch.setattr(time, "time", lambda: real() + 3590)

    first = then(send(log_frame(1)), an_hour_later)
    with ScriptedServer(said(ME), said({"job": JOB}), first, send(log_frame(2), COMPLETED, END_FRAME)) as server:
        steps: list[int] = []
        watch(server.url, steps).wait(timeout=20)
    assert steps == [1, 2]
    assert server.requests[2]["authorization"] != server.requests[3]["authorization"]
    assert auth.accepts(server.requests[3])


def test_an_abort_during_a_renewal_is_immediate_and_keeps_the_sign_in(
    auth: AuthorizationServer, tmp_path: Path
) -> None:
    write_state(ProjectState("org-1", "bot", "p-1"), tmp_path)
    auth.delay = 3.0
    aborted = threading.Event()
    first = then(send(log_frame(1)), auth.expire_all)
    with ScriptedServer(said(ME), said({"job": JOB}), first, said({}, 401)) as server:
        write_credentials(auth.sign_in(server.url))
        trainer = Trainer.attach(
            "j", abort_signal=aborted, reconnect=ReconnectPolicy(0.01), progress=False, project_dir=tmp_path
        )
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(trainer.wait)
            until(lambda: auth.requests)
            aborted.set()
            with pytest.raises(TrainerAborted):
                waiting.result()
            assert len(auth.tokens) == 1  # the renewal is still in progress
        until(lambda: read_credentials().bearer == auth.tokens[-1].access_token)
    assert len(auth.tokens) == 2


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
