"""Error responses of a backend: one line, without the token, with a remedy."""

from __future__ import annotations

import json
import pickle
import threading
import time
from email.utils import formatdate
from pathlib import Path
from urllib.parse import quote

import pytest

from arkor.client.api import CloudApiClient
from arkor.client.auth.credentials import TokenCredentials
from arkor.client.http import decoding
from arkor.client.http.auth import Auth
from arkor.client.http.client import HttpClient
from arkor.client.http.errors import retry_after
from arkor.client.http.versions import upgrade_command
from arkor.errors import BackendUnavailable, CloudApiError
from arkor.protocol.chat import Adapter, InferenceRequest
from arkor.protocol.jobs import Scope
from arkor.settings import VERSION
from tests.fakes.http_server import Answer, HttpServer

TOKEN = "s3cret/token+of=the-caller"


def refused(answer: Answer) -> CloudApiError:
    with HttpServer(answer) as server, pytest.raises(CloudApiError) as caught:
        HttpClient(Auth(server.url, TOKEN), retry_budget=0).call("GET", "/v1/x")
    return caught.value


def everything_of(error: CloudApiError) -> str:
    return f"{error} {error!r} {error.__dict__} {error.args}"


# Tokens are redacted

ECHOES = [
    Answer(400, {"error": f"bad token {TOKEN}", "code": TOKEN}),
    Answer(400, {"error": {"message": f"Bearer {TOKEN} is bad", "code": f"x-{TOKEN}"}}),
    Answer(403, f"<html><title>Denied: {TOKEN}</title></html>".encode()),
    Answer(502, f"<html><body>GET /x HTTP/1.1 Authorization: Bearer {TOKEN} &lt;</body></html>".encode()),
    Answer(400, {"error": f"see https://login.example/?token={quote(TOKEN, safe='')}"}),
    Answer(400, {"error": "x" * 480 + f" and {TOKEN} behind the cut"}),
    Answer(400, {"error": "no"}, {"X-Request-Id": f"r-{TOKEN}"}),
    Answer(302, b"", {"Location": f"https://user:{TOKEN}@elsewhere.example/a?b={TOKEN}"}),
    Answer(302, b"", {"Location": f"https://elsewhere.example/{quote(TOKEN, safe='')}"}),
    Answer(200, b"not json", {"Content-Type": f"text/{TOKEN}"}),
    Answer(426, f"upgrade, {TOKEN}".encode()),
]


@pytest.mark.parametrize("answer", ECHOES)
def test_an_echoed_token_is_redacted(answer: Answer) -> None:
    text = everything_of(refused(answer))
    assert TOKEN not in text
    assert quote(TOKEN, safe="") not in text
    assert TOKEN[:12] not in text


def test_a_token_in_a_stream_is_redacted() -> None:
    frame = f"data: {json.dumps({'error': {'message': f'lost {TOKEN}', 'code': 'x'}})}\n\n".encode()
    with HttpServer(Answer(200, frame, {"Content-Type": "text/event-stream"})) as server:
        client = CloudApiClient(server.url, TokenCredentials(TOKEN, server.url), scope=Scope("o", "p"))
        with pytest.raises(CloudApiError, match=r"lost \[token\]") as caught:
            client.chat(InferenceRequest([{"role": "user", "content": "?"}], adapter=Adapter("final", "j"))).text()
    assert TOKEN not in everything_of(caught.value)


def test_the_attributes_of_an_error() -> None:
    error = refused(Answer(409, {"error": "Taken.", "code": "slug_taken"}, {"X-Request-Id": "r-1"}))
    assert (error.status, error.code, error.method, error.path, error.request_id) == (
        409,
        "slug_taken",
        "GET",
        "/v1/x",
        "r-1",
    )
    assert str(pickle.loads(pickle.dumps(error))) == "Taken. (GET /v1/x, status 409)"


# Pages of proxies


@pytest.mark.parametrize(
    ("page", "says"),
    [
        ("<html><head><title>502 Bad\nGateway</title></head><body>…</body></html>", "502 Bad Gateway"),
        (
            "<!DOCTYPE html><style>b{}</style><script>x()</script><h1>Web filter</h1><p>Blocked</p>",
            "Web filter Blocked",
        ),
        ("upstream connect error", "upstream connect error"),
        ("", "the backend answered 502 Bad Gateway"),
    ],
)
def test_a_page_is_one_line(page: str, says: str) -> None:
    sentence = str(refused(Answer(502, page.encode(), {"Content-Type": "text/html"})))
    assert says in sentence
    assert "\n" not in sentence
    assert "<" not in sentence


# Too old


@pytest.mark.parametrize(
    ("files", "command"),
    [
        ({}, "pip install --upgrade arkor"),
        ({"pyvenv.cfg": "home = /usr/bin\nversion = 3.11.7\n"}, "pip install --upgrade arkor"),
        ({"pyvenv.cfg": "home = /usr/bin\nuv = 0.5.1\n"}, "uv pip install --upgrade arkor"),
        (
            {"pyvenv.cfg": "uv = 0.5.1\n", "lib/python3.11/site-packages/pip/__init__.py": ""},
            "pip install --upgrade arkor",
        ),
        ({"pyvenv.cfg": "uv = 0.5.1\n", "uv-receipt.toml": ""}, "uv tool upgrade arkor"),
        ({"pyvenv.cfg": "home = /usr/bin\n", "pipx_metadata.json": "{}"}, "pipx upgrade arkor"),
    ],
)
def test_the_upgrade_command_fits_the_environment(files: dict[str, str], command: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert upgrade_command(tmp_path) == command


@pytest.mark.parametrize(
    "body", [b"", b"<html>old</html>", {"error": "Too old."}, {"error": "pip is outdated"}, b"\xff"]
)
def test_426_shows_the_upgrade_command_whatever_the_body(body: object) -> None:
    assert f"upgrade it: {upgrade_command()}" in str(refused(Answer(426, body)))


def test_426_names_the_supported_versions() -> None:
    body = {
        "error": "sdk_version_unsupported",
        "currentVersion": "0.0.1",
        "supportedRange": "^1.4.0",
        "upgrade": "npm i",
    }
    error = refused(Answer(426, body))
    assert error.code == "sdk_version_unsupported"
    assert str(error).startswith(f"the backend supports clients of version ^1.4.0, and this is {VERSION} (this arkor")
    assert "npm" not in str(error)


@pytest.mark.parametrize("code", ["anonymous_token_single_device", "anonymous_account_not_found"])
def test_a_deleted_anonymous_identity_has_a_remedy(code: str) -> None:
    error = refused(Answer(409, {"error": "Anonymous token is no longer current.", "code": code}))
    assert "arkor login" in str(error)
    assert ".arkor/state.json" in str(error)


def test_426_shows_the_upgrade_command_once() -> None:
    output = str(refused(Answer(426, {"error": f"Too old: {upgrade_command()}"})))
    assert output.count(upgrade_command()) == 1


# Retry-After


def test_a_retry_after_date_uses_the_clock_of_the_backend() -> None:
    an_hour_ahead = time.time() + 3600
    headers = {
        "Retry-After": formatdate(an_hour_ahead + 7, usegmt=True),
        "Date": formatdate(an_hour_ahead, usegmt=True),
    }
    assert retry_after(headers) == pytest.approx(7, abs=1)
    assert retry_after({**headers, "Date": "yesterday"}) == pytest.approx(3607, abs=5)
    assert retry_after({"Retry-After": formatdate(an_hour_ahead - 7200, usegmt=True)}) == 0


def test_a_long_retry_after_does_not_exceed_the_budget() -> None:
    for value in ("31", "999999999", formatdate(time.time() + 86_400 * 365, usegmt=True)):
        began = time.monotonic()
        with HttpServer(Answer(429, headers={"Retry-After": value})) as server, pytest.raises(CloudApiError):
            HttpClient(Auth(server.url, TOKEN)).call("GET", "/v1/x")
        assert time.monotonic() - began < 10
        assert len(server.requests) == 1


# Lost responses


@pytest.mark.parametrize("lost", [Answer(None), Answer(502), Answer(504), Answer(408)])
def test_a_deletion_whose_response_was_lost_succeeds(lost: Answer) -> None:
    with HttpServer(lost, Answer(404, {"error": "Not found."})) as server:
        HttpClient(Auth(server.url, TOKEN)).call("DELETE", "/v1/endpoints/d")
    assert [request.method for request in server.requests] == ["DELETE", "DELETE"]


@pytest.mark.parametrize("first", [Answer(404), Answer(429, headers={"Retry-After": "0"})])
def test_deleting_a_missing_resource_is_an_error(first: Answer) -> None:
    with HttpServer(first, Answer(404, {"error": "Not found."})) as server:
        with pytest.raises(CloudApiError) as caught:
            HttpClient(Auth(server.url, TOKEN)).call("DELETE", "/v1/endpoints/d")
    assert caught.value.status == 404


def test_a_missing_resource_after_a_retry_is_an_error() -> None:
    with HttpServer(Answer(502), Answer(404)) as server, pytest.raises(CloudApiError):
        HttpClient(Auth(server.url, TOKEN)).call("GET", "/v1/jobs/j")


@pytest.mark.parametrize("lost", [Answer(None), Answer(500), Answer(503), Answer(429), Answer(408)])
def test_a_post_without_a_key_is_never_sent_twice(lost: Answer) -> None:
    with HttpServer(lost, Answer(body={"key": {"id": "k", "label": "ci"}})) as server:
        client = CloudApiClient(server.url, TokenCredentials(TOKEN, server.url), scope=Scope("o", "p"))
        with pytest.raises((CloudApiError, BackendUnavailable)):
            client.create_deployment_key("d", "ci")
    assert len(server.requests) == 1


def test_a_response_that_trickles_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()

    class Trickle(HttpServer):
        """Sends a byte every tenth of a second."""

        def answer(self, handler: object) -> None:
            handler.send_response(200)  # type: ignore[attr-defined]
            handler.send_header("Content-Length", "100000")  # type: ignore[attr-defined]
            handler.end_headers()  # type: ignore[attr-defined]
            while not done.wait(0.1):
                handler.wfile.write(b" ")  # type: ignore[attr-defined]

    monkeypatch.setattr(decoding, "RESPONSE_SECONDS", 0.5)
    server, began = Trickle(), time.monotonic()
    try:
        with pytest.raises(BackendUnavailable, match="did not answer in time"):
            HttpClient(Auth(server.url, TOKEN), retry_budget=0).call("GET", "/v1/x")
    finally:
        done.set()
        server.close()
    assert time.monotonic() - began < 20


def test_failed_attempts_of_an_earlier_call_do_not_count() -> None:
    with HttpServer(Answer(502), Answer(204, b""), Answer(404)) as server:
        caller = HttpClient(Auth(server.url, TOKEN))
        caller.call("DELETE", "/v1/endpoints/d")
        with pytest.raises(CloudApiError):
            caller.call("DELETE", "/v1/endpoints/d")
