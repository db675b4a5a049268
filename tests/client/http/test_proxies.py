"""The client in a company's network, with a CONNECT proxy and a certificate authority."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from arkor.client.api import CloudApiClient
from arkor.client.auth.credentials import TokenCredentials
from arkor.client.auth.oauth import request_token
from arkor.client.http.auth import Auth
from arkor.client.http.client import HttpClient
from arkor.client.http.deadline import Deadline
from arkor.client.streaming.event_stream import EventStream
from arkor.client.streaming.reconnect_policy import ReconnectPolicy
from arkor.errors import ArkorError, BackendUnavailable, TrainerAborted
from arkor.protocol.events import TrainingLog
from arkor.protocol.jobs import Scope
from tests.fakes.corporate_proxy import CorporateProxy
from tests.fakes.http_server import Answer, HttpServer
from tests.fakes.sse_server import ScriptedServer, log_frame, send

HOST = "backend.example"
URL = f"https://{HOST}"
TOKEN = "the-token-of-the-caller"


@pytest.fixture
def corporate_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CorporateProxy]:
    """A company whose proxy and authority are set in the environment."""
    with closing(CorporateProxy(tmp_path)) as found:
        for other in ("CURL_CA_BUNDLE", "SSL_CERT_FILE"):
            monkeypatch.delenv(other, raising=False)
        monkeypatch.setenv("HTTPS_PROXY", found.proxy_url)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(found.bundle))
        yield found


def test_a_call_goes_through_a_tunnel(corporate_proxy: CorporateProxy) -> None:
    with HttpServer(Answer(body={"a": 1})) as server:
        corporate_proxy.serve(HOST, server.url)
        assert HttpClient(Auth(URL, TOKEN)).call("GET", "/v1/x") == {"a": 1}
    assert corporate_proxy.tunnels == [f"CONNECT {HOST}:443"]
    assert server.requests[0].headers["authorization"] == f"Bearer {TOKEN}"


def test_an_upload_goes_through_a_tunnel(corporate_proxy: CorporateProxy, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(b'{"text": "a row"}\n' * 200_000)
    with HttpServer(Answer(201, {"dataset": {"url": "/v1/datasets/d"}})) as server:
        corporate_proxy.serve(HOST, server.url)
        client = CloudApiClient(URL, TokenCredentials(TOKEN, URL), scope=Scope("o", "p"))
        assert client.upload_dataset(rows).url == "/v1/datasets/d"
    assert server.requests[0].body == rows.read_bytes()


@pytest.mark.parametrize("tunnelled", [True, False])
def test_an_abort_interrupts_a_tls_stream_at_once(
    corporate_proxy: CorporateProxy, monkeypatch: pytest.MonkeyPatch, tunnelled: bool
) -> None:
    released, abort, set_at = threading.Event(), threading.Event(), []
    with ScriptedServer(send(log_frame(1), until=released)) as server:
        port = corporate_proxy.serve("localhost" if not tunnelled else HOST, server.url)
        http = HttpClient(Auth(URL if tunnelled else f"https://localhost:{port}", TOKEN))
        stream = EventStream(lambda cursor: http.open("GET", "/"), ReconnectPolicy(max_attempts=0))
        with closing(stream.events(Deadline.after(abort, None))) as events:
            assert isinstance(next(events), TrainingLog)
            timer = threading.Timer(0.3, lambda: (set_at.append(time.monotonic()), abort.set()))
            timer.start()
            with pytest.raises(TrainerAborted):
                next(events)
        assert time.monotonic() - set_at[0] < 5  # 0.1 s on an idle machine
        released.set()
    assert bool(corporate_proxy.tunnels) == tunnelled


def test_a_token_is_requested_through_a_tunnel(corporate_proxy: CorporateProxy) -> None:
    with HttpServer(Answer(body={"access_token": "another-token"})) as server:
        corporate_proxy.serve("login.example", server.url)
        assert request_token("login.example", {"grant_type": "refresh_token"})["access_token"] == "another-token"
    assert corporate_proxy.tunnels == ["CONNECT login.example:443"]


def test_loopback_uses_no_proxy_but_the_authority(corporate_proxy: CorporateProxy) -> None:
    with HttpServer(Answer(308, headers={"Location": "/v1/y"}), Answer(body={"a": 1})) as server:
        port = corporate_proxy.serve("localhost", server.url)
        assert HttpClient(Auth(f"https://localhost:{port}", TOKEN)).call("GET", "/v1/x") == {"a": 1}
    assert corporate_proxy.tunnels == []


@pytest.mark.parametrize("variable", ["NO_PROXY", "no_proxy"])
def test_no_proxy_bypasses_the_proxy(
    corporate_proxy: CorporateProxy, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, ".example")
    with pytest.raises(BackendUnavailable, match="cannot be reached"):
        HttpClient(Auth(URL, TOKEN), retry_budget=0).call("GET", "/v1/x")
    assert corporate_proxy.tunnels == []


@pytest.mark.parametrize("variable", ["CURL_CA_BUNDLE", "SSL_CERT_FILE"])
def test_each_certificate_variable_is_used(
    corporate_proxy: CorporateProxy, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, str(corporate_proxy.bundle))
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    with HttpServer(Answer(body={"a": 1}), Answer(body={"access_token": "another-token"})) as server:
        corporate_proxy.serve(HOST, server.url)
        corporate_proxy.serve("login.example", server.url)
        assert HttpClient(Auth(URL, TOKEN)).call("GET", "/v1/x") == {"a": 1}
        assert request_token("login.example", {"grant_type": "refresh_token"})["access_token"] == "another-token"


def test_requests_variables_take_precedence(
    corporate_proxy: CorporateProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "nowhere.pem"))
    with HttpServer(Answer(body={"a": 1})) as server:
        corporate_proxy.serve(HOST, server.url)
        assert HttpClient(Auth(URL, TOKEN)).call("GET", "/v1/x") == {"a": 1}
        monkeypatch.delenv("REQUESTS_CA_BUNDLE")
        output = sentence_of(lambda: HttpClient(Auth(URL, TOKEN), retry_budget=0).call("GET", "/v1/x"))
    assert output.endswith(f"{tmp_path / 'nowhere.pem'}; check SSL_CERT_FILE")


def sentence_of(call: object) -> str:
    with pytest.raises(ArkorError) as caught:
        call()  # type: ignore[operator]
    assert TOKEN not in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_untrusted_authority(corporate_proxy: CorporateProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    with HttpServer(Answer()) as server:
        corporate_proxy.serve(HOST, server.url)
        corporate_proxy.serve("login.example", server.url)
        began = time.monotonic()
        output = sentence_of(lambda: HttpClient(Auth(URL, TOKEN)).call("GET", "/v1/x"))
        login = sentence_of(lambda: request_token("login.example", {}))
    for sentence in (output, login):
        assert "does not trust (unable to get local issuer certificate)" in sentence
        assert "own authority, point SSL_CERT_FILE or REQUESTS_CA_BUNDLE to its certificates" in sentence
    assert time.monotonic() - began < 10  # not retried
    assert server.requests == []


@pytest.mark.parametrize("content", [None, b"", b"this is no certificate"])
def test_an_invalid_certificate_bundle(
    corporate_proxy: CorporateProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    bundle = tmp_path / "bundle.pem"
    if content is not None:
        bundle.write_bytes(content)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
    with HttpServer(Answer()) as server:
        corporate_proxy.serve(HOST, server.url)
        corporate_proxy.serve("login.example", server.url)
        for call in (
            lambda: HttpClient(Auth(URL, TOKEN), retry_budget=0).call("GET", "/v1/x"),
            lambda: request_token("login.example", {}),
        ):
            assert "REQUESTS_CA_BUNDLE" in sentence_of(call)


def test_a_certificate_of_another_host(corporate_proxy: CorporateProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    with HttpServer(Answer()) as server:
        port = corporate_proxy.serve("other.example", server.url)
        output = sentence_of(lambda: HttpClient(Auth(f"https://localhost:{port}", TOKEN)).call("GET", "/v1/x"))
    assert "is not valid for 'localhost'); check the address" in output
    assert "authority" not in output
    assert server.requests == []


def test_a_proxy_that_blocks_is_named(corporate_proxy: CorporateProxy) -> None:
    output = sentence_of(
        lambda: HttpClient(Auth("https://forbidden.example", TOKEN), retry_budget=0).call("GET", "/v1/x")
    )
    assert "cannot be reached through the proxy (403 Blocked by the company); check HTTPS_PROXY and NO_PROXY" in output


def test_a_proxy_with_a_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(CorporateProxy(tmp_path, password="a-password-of-mine")) as company, HttpServer(Answer()) as server:
        company.serve(HOST, server.url)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(company.bundle))
        monkeypatch.setenv("HTTPS_PROXY", company.proxy_url)
        assert HttpClient(Auth(URL, TOKEN)).call("GET", "/v1/x") == {}
        monkeypatch.setenv("HTTPS_PROXY", company.proxy_url.replace("a-password", "not-the-password"))
        output = sentence_of(lambda: HttpClient(Auth(URL, TOKEN), retry_budget=0).call("GET", "/v1/x"))
    assert "407 Proxy Authentication Required" in output
    assert "password" not in output.replace("Proxy Authentication", "")


def test_an_unreachable_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:a-password-of-mine@127.0.0.1:1")
    began = time.monotonic()
    output = sentence_of(lambda: HttpClient(Auth(URL, TOKEN), retry_budget=0).call("POST", "/v1/x", body={}))
    assert "through the proxy" in output
    assert "a-password-of-mine" not in output
    assert time.monotonic() - began < 10


def test_an_invalid_proxy_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for proxy in ("http://", "ftp://x", "http://[::1", "not a proxy", "socks5://127.0.0.1:1"):
        monkeypatch.setenv("HTTPS_PROXY", proxy)
        assert sentence_of(lambda: HttpClient(Auth(URL, TOKEN), retry_budget=0).call("GET", "/v1/x"))
