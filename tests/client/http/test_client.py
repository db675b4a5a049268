"""`HttpClient` against real sockets."""

from __future__ import annotations

import io
import pickle
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from arkor.client.http.auth import Auth
from arkor.client.http.client import HttpClient
from arkor.client.http.urls import checked_url, is_loopback_url
from arkor.errors import BackendUnavailable, CloudApiError, CredentialsError, InvalidConfig
from arkor.settings import VERSION
from tests.fakes.http_server import Answer, HttpServer, Request

TOKEN = "a-secret-token"


def http(server: HttpServer, **rest: float) -> HttpClient:
    return HttpClient(Auth(server.url, TOKEN), **rest)


def unused_url() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


# Every request


def test_the_client_headers() -> None:
    with HttpServer(Answer(body={"a": 1})) as server:
        assert http(server).call("POST", "/v1/x", query={"orgSlug": "o"}, body={"b": "ü"}) == {"a": 1}
    (request,) = server.requests
    assert request.target == "/v1/x?orgSlug=o"
    assert request.headers["authorization"] == f"Bearer {TOKEN}"
    assert request.headers["x-arkor-client"] == f"arkor/{VERSION}"
    assert request.headers["content-type"] == "application/json"
    assert request.json() == {"b": "ü"}


def test_the_client_headers_without_a_token() -> None:
    with HttpServer(Answer()) as server:
        HttpClient(Auth(server.url)).call("GET", "/healthz")
    (request,) = server.requests
    assert "authorization" not in request.headers
    assert request.headers["x-arkor-client"] == f"arkor/{VERSION}"


def test_a_path_in_the_base_url_is_kept() -> None:
    with HttpServer(Answer()) as server:
        HttpClient(Auth(f"{server.url}/arkor/")).call("GET", "/v1/me")
    assert server.requests[0].target == "/arkor/v1/me"


def test_an_answer_without_a_body_is_empty() -> None:
    with HttpServer(Answer(204, b"")) as server:
        assert http(server).call("DELETE", "/v1/x") == {}


def test_no_cookie_is_kept() -> None:
    with HttpServer(Answer(headers={"Set-Cookie": "a=b; Path=/"})) as server:
        caller = http(server)
        caller.call("GET", "/v1/x")
        caller.call("GET", "/v1/x")
    assert "cookie" not in server.requests[1].headers


def test_loopback_uses_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with HttpServer(Answer(body={"from": "proxy"})) as proxy, HttpServer(Answer(body={"from": "backend"})) as server:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("http_proxy", proxy.url)
        assert http(server).call("GET", "/v1/x") == {"from": "backend"}
        assert HttpClient(Auth("http://backend.example", TOKEN)).call("GET", "/v1/x") == {"from": "proxy"}
        monkeypatch.setenv("NO_PROXY", "backend.example")
        with pytest.raises(BackendUnavailable):
            HttpClient(Auth("http://backend.example"), retry_budget=0).call("GET", "/v1/x")
    assert proxy.requests[0].target == "http://backend.example/v1/x"


def test_a_netrc_does_not_replace_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine backend.example login someone password else\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    redirect = Answer(307, headers={"Location": "/v1/y"})
    with HttpServer(Answer(), redirect, Answer(), Answer()) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        caller = HttpClient(Auth("http://backend.example", TOKEN))
        caller.call("GET", "/v1/x")
        caller.call("GET", "/v1/x")
        HttpClient(Auth("http://backend.example")).call("GET", "/v1/x")
    first, redirected, followed, anonymous = proxy.requests
    assert {r.headers["authorization"] for r in (first, redirected, followed)} == {f"Bearer {TOKEN}"}
    assert "authorization" not in anonymous.headers


@pytest.mark.parametrize("token", ["", "with blank", "with\nline", "with\x00nul"])
def test_a_malformed_token_is_rejected_and_not_shown(token: str) -> None:
    with pytest.raises(CredentialsError) as caught:
        Auth("http://127.0.0.1", token)
    assert not token or token not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["", "localhost:4000", "ftp://x", "http://", "http://x:port", "http://u:p@x", "http://x?q", 7]
)
def test_an_invalid_base_url_is_rejected(url: str) -> None:
    with pytest.raises(InvalidConfig, match="base_url"):
        checked_url(url)


def test_loopback() -> None:
    assert all(
        is_loopback_url(f"http://{host}:1") for host in ("127.0.0.1", "127.8.8.8", "localhost", "[::1]", "a.localhost")
    )
    assert not any(
        is_loopback_url(f"http://{host}:1") for host in ("10.0.0.1", "localhost.example", "127.0.0.1.example")
    )


# Redirects


def test_a_redirect_within_the_backend_is_followed() -> None:
    with HttpServer(Answer(308, headers={"Location": "/v2/x"}), Answer(body={"a": 1})) as server:
        assert http(server).call("POST", "/v1/x", body={"b": 2}) == {"a": 1}
    assert server.requests[1].headers["authorization"] == f"Bearer {TOKEN}"
    assert server.requests[1].json() == {"b": 2}


def test_a_redirect_to_another_origin_is_an_error() -> None:
    with HttpServer(Answer()) as elsewhere:
        away = Answer(302, headers={"Location": f"{elsewhere.url}/v1/x?secret=1"})
        with HttpServer(away) as server, pytest.raises(CloudApiError, match="redirects this call") as caught:
            http(server).call("GET", "/v1/x")
        assert elsewhere.requests == []
    assert caught.value.code == "redirected"
    assert elsewhere.url in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_redirect_that_would_turn_a_post_into_a_get_is_an_error() -> None:
    moved = Answer(301, headers={"Location": "/v2/x"})
    with HttpServer(moved, Answer()) as server, pytest.raises(CloudApiError, match="redirects"):
        http(server).call("POST", "/v1/x", body={})
    assert len(server.requests) == 1


# Error responses

PAGE = b"<!doctype html><html><head><title>502 Bad\n Gateway</title></head><body>%s</body></html>" % (b"x" * 300_000)


@pytest.mark.parametrize(
    ("status", "body", "sentence", "code"),
    [
        (
            400,
            {"error": "maxSteps must be positive.", "code": "invalid_request"},
            "maxSteps must be positive.",
            "invalid_request",
        ),
        (404, {"error": "No such job."}, "No such job.", None),
        (400, {"error": {"message": "bad schema", "code": "invalid_schema"}}, "bad schema", "invalid_schema"),
        (400, {"message": "from a gateway"}, "from a gateway", None),
        (422, {"detail": [{"loc": 1}]}, "the backend answered 422", None),
        (502, PAGE, "the backend answered 502 Bad Gateway: 502 Bad Gateway", None),
        (503, b"<p>Please <b>wait</b></p>", "the backend answered 503 Service Unavailable: Please wait", None),
        (500, b"", "the backend answered 500 Internal Server Error", None),
        (500, b"\xff\xfe\x00garbage\x1b[31m", "garbage", None),
        (500, b"[" * 100_000, "the backend answered 500", None),
        (400, b"null", "the backend answered 400 Bad Request: null", None),
        (400, {"error": f"the token {TOKEN} is bad"}, "the token [token] is bad", None),
    ],
)
def test_an_error_status_is_one_line(status: int, body: object, sentence: str, code: str | None) -> None:
    with HttpServer(Answer(status, body, {"X-Request-Id": "r-1"})) as server, pytest.raises(CloudApiError) as caught:
        http(server, retry_budget=0).call("GET", "/v1/jobs/x", query={"orgSlug": "o"})
    error = caught.value
    assert (error.status, error.code, error.method, error.path) == (status, code, "GET", "/v1/jobs/x")
    assert error.request_id == "r-1"
    assert sentence in str(error)
    assert len(str(error)) < 700
    assert str(error).isprintable()
    assert TOKEN not in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize("body", [{"error": "Too old."}, b"<html>nope</html>", b""])
def test_426_always_says_how_to_upgrade(body: object) -> None:
    with HttpServer(Answer(426, body)) as server, pytest.raises(CloudApiError, match="pip install --upgrade arkor"):
        http(server).call("GET", "/v1/x")


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [
        ("7", 7, 7),
        ("1.5", 1.5, 1.5),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
        ("Wed, 21 Oct 2099 07:28:00 GMT", 1e9, 1e10),
    ],
)
def test_retry_after_in_both_forms(value: str, low: float, high: float) -> None:
    with HttpServer(Answer(429, headers={"Retry-After": value})) as server, pytest.raises(CloudApiError) as caught:
        http(server, retry_budget=0).call("GET", "/v1/x")
    assert caught.value.retry_after is not None
    assert low <= caught.value.retry_after <= high


@pytest.mark.parametrize("value", ["", "-3", "soon", "nan", "9" * 400, "Wed, 99 Foo 2015 99:99:99 GMT"])
def test_an_invalid_retry_after(value: str) -> None:
    with HttpServer(Answer(429, headers={"Retry-After": value})) as server, pytest.raises(CloudApiError) as caught:
        http(server, retry_budget=0).call("GET", "/v1/x")
    assert caught.value.retry_after is None


@pytest.mark.parametrize(
    "body", [b"<html>Log in to the hotel's network</html>", b"[]", b"{", b"[" * 100_000, b"1" * 9_000]
)
def test_a_success_that_is_not_a_json_object(body: bytes) -> None:
    with (
        HttpServer(Answer(200, body)) as server,
        pytest.raises(CloudApiError, match="check that this is the address") as caught,
    ):
        http(server).call("GET", "/v1/x")
    assert caught.value.code == "bad_answer"
    assert len(server.requests) == 1


# No response


def test_an_unreachable_backend_is_named() -> None:
    url = unused_url()
    with pytest.raises(BackendUnavailable) as caught:
        HttpClient(Auth(url, TOKEN), retry_budget=0).call("GET", "/v1/x", query={"q": "private"})
    assert url in str(caught.value)
    assert "Connection refused" in str(caught.value)
    assert "private" not in str(caught.value)
    assert TOKEN not in str(caught.value)


def test_a_silent_backend_times_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        access = Auth(f"http://127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(BackendUnavailable, match="did not answer in time"):
            HttpClient(access, retry_budget=0).call("GET", "/v1/x", timeout=(1.0, 0.1))


def test_an_incomplete_response() -> None:
    cut = Answer(200, b'{"a": ', {"Content-Length": "100", "Connection": "close"})
    with HttpServer(cut) as server, pytest.raises(BackendUnavailable, match="closed the connection"):
        http(server, retry_budget=0).call("GET", "/v1/x", timeout=(1.0, 1.0))


# Retries


@pytest.mark.parametrize(
    "fault", [Answer(408), Answer(429, headers={"Retry-After": "0"}), Answer(500), Answer(503), Answer(None)]
)
def test_transient_failures_are_retried(fault: Answer) -> None:
    with HttpServer(fault, Answer(body={"a": 1})) as server:
        assert http(server).call("GET", "/v1/x") == {"a": 1}
    assert len(server.requests) == 2


def test_an_incomplete_response_is_requested_again() -> None:
    cut = Answer(200, b'{"a": ', {"Content-Length": "100", "Connection": "close"})
    with HttpServer(cut, Answer(body={"a": 1})) as server:
        assert http(server).call("GET", "/v1/x") == {"a": 1}


@pytest.mark.parametrize("fault", [Answer(400), Answer(404), Answer(409), Answer(426)])
def test_other_failures_are_not_retried(fault: Answer) -> None:
    with HttpServer(fault, Answer()) as server, pytest.raises(CloudApiError):
        http(server).call("GET", "/v1/x")
    assert len(server.requests) == 1


@pytest.mark.parametrize("fault", [Answer(503), Answer(429), Answer(None)])
def test_a_post_is_sent_once(fault: Answer) -> None:
    with HttpServer(fault, Answer()) as server, pytest.raises((CloudApiError, BackendUnavailable)):
        http(server).call("POST", "/v1/x", body={})
    assert len(server.requests) == 1


def test_a_repeatable_post_is_repeated_unchanged() -> None:
    with HttpServer(Answer(None), Answer(503), Answer(body={"a": 1})) as server:
        headers = {"Idempotency-Key": "k"}
        assert http(server).call("POST", "/v1/x", body={"b": 1}, headers=headers, repeatable=True) == {"a": 1}
    assert {r.headers["idempotency-key"] for r in server.requests} == {"k"}
    assert {r.body for r in server.requests} == {b'{"b":1}'}


def test_an_upload_is_opened_for_each_attempt() -> None:
    with HttpServer(Answer(503), Answer()) as server:
        http(server).call("POST", "/v1/x", upload=lambda: io.BytesIO(b"rows"), repeatable=True)
    assert [r.body for r in server.requests] == [b"rows", b"rows"]


def test_retry_after_is_honoured() -> None:
    with HttpServer(Answer(429, headers={"Retry-After": "1"}), Answer()) as server:
        began = time.monotonic()
        http(server).call("GET", "/v1/x")
    assert 1.0 <= time.monotonic() - began < 10


def test_no_wait_exceeds_the_budget() -> None:
    with HttpServer(Answer(429, headers={"Retry-After": "3600"})) as server:
        began = time.monotonic()
        with pytest.raises(CloudApiError) as caught:
            http(server).call("GET", "/v1/x")
    assert time.monotonic() - began < 10
    assert caught.value.retry_after == 3600


def test_a_backend_at_a_new_address_is_found_even_by_a_post() -> None:
    class Moved(Auth):
        """The `Auth` of a backend that restarts at another address."""

        def refresh(self) -> bool:
            self.base_url = server.url
            return True

    with HttpServer(Answer(body={"a": 1})) as server:
        assert HttpClient(Moved(unused_url(), TOKEN)).call("POST", "/v1/x", body={}) == {"a": 1}


def test_a_rejected_token_is_renewed_once() -> None:
    class Renewed(Auth):
        def refresh(self) -> bool:
            self.token = "another"
            return True

    def gate(request: Request) -> Answer:
        return Answer() if request.headers["authorization"] == "Bearer another" else Answer(401, {"error": "no"})

    with HttpServer(gate) as server:
        HttpClient(Renewed(server.url, TOKEN)).call("POST", "/v1/x", body={})
    assert len(server.requests) == 2


# Streams


def test_open_sends_once_and_reads_nothing() -> None:
    stream = Answer(200, b"data: x\n\n", {"Content-Type": "text/event-stream"})
    with HttpServer(stream) as server:
        response = http(server).open("GET", "/v1/x", headers={"Accept": "text/event-stream"})
        assert response.raw.read1(100) == b"data: x\n\n"
        response.close()
    assert server.requests[0].headers["accept"] == "text/event-stream"


def test_a_rejected_stream_is_not_retried() -> None:
    with HttpServer(Answer(503, {"error": "Busy."})) as server, pytest.raises(CloudApiError, match=r"Busy\."):
        http(server).open("GET", "/v1/x")
    assert len(server.requests) == 1


@pytest.mark.parametrize("value", [" leading", "trailing ", "zwölf", "日本", "a b"])
def test_raw_headers_are_sent_as_they_are(value: str) -> None:
    with HttpServer(Answer()) as server:
        http(server).open("GET", "/v1/x", raw_headers={"Last-Event-ID": value.encode()}).close()
    assert server.requests[0].headers["last-event-id"].encode("latin-1").decode().strip() == value.strip()


# In processes of their own

DEPRECATED = Answer(
    headers={"Deprecation": "true", "Warning": '299 - "Use v2 \\"soon\\"."', "Sunset": "Wed, 01 Dec 2027 00:00:00 GMT"}
)
SENTENCE = 'Use v2 "soon". (ends on Wed, 01 Dec 2027 00:00:00 GMT)'


@pytest.mark.parametrize("options", [[], ["-W", "error"]])
def test_a_deprecation_is_shown_once_and_never_fails_a_call(options: list[str]) -> None:
    code = """
import sys
from arkor.client.http.client import *
h = HttpClient(Auth(sys.argv[1]))
for _ in range(3):
    h.call("GET", "/x")
"""
    with HttpServer(DEPRECATED) as server:
        done = subprocess.run(
            [sys.executable, *options, "-c", code, server.url], capture_output=True, text=True, check=True
        )
    assert done.stderr.count(SENTENCE) == 1
    assert ("ArkorDeprecationWarning" in done.stderr) == (not options)


def test_a_forked_process_has_its_own_connection() -> None:
    code = """
import os, sys
from arkor.client.http.client import *
h = HttpClient(Auth(sys.argv[1]))
h.call("GET", "/x")
child = os.fork()
answers = {h.call("GET", "/%d" % os.getpid())["target"] for _ in range(20)}
assert answers == {"/%d" % os.getpid()}, answers
assert child == 0 or os.waitpid(child, 0)[1] == 0
"""
    with HttpServer(lambda request: Answer(body={"target": request.target})) as server:
        subprocess.run([sys.executable, "-c", code, server.url], check=True)
