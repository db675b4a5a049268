"""The browser login against a real authorization server, with a browser that follows redirects."""

from __future__ import annotations

import base64
import hashlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
import requests

from arkor.client.auth.browser_login import SignInConfig, sign_in, sign_in_config
from arkor.client.auth.callback_server import CallbackServer, parse_authorization_response
from arkor.client.auth.oauth import OAuthAuth
from arkor.client.http.auth import Auth
from arkor.client.http.client import HttpClient
from arkor.errors import BackendUnavailable, CloudApiError, CredentialsError
from tests.fakes.authorization_server import AUDIENCE, CLIENT_ID, AuthorizationServer
from tests.fakes.http_server import Answer, HttpServer

URL = "https://api.example"
OF_OTHERS = "-".join(("code", "of", "others"))


@pytest.fixture
def auth() -> Iterator[AuthorizationServer]:
    with AuthorizationServer() as server:
        yield server


def free_ports(count: int) -> tuple[int, ...]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = tuple(sock.getsockname()[1] for sock in sockets)
    for sock in sockets:
        sock.close()
    return ports


def config_of(auth: AuthorizationServer, ports: tuple[int, ...] = ()) -> SignInConfig:
    return SignInConfig(auth.domain, CLIENT_ID, AUDIENCE, ports or free_ports(1))


class Browser:
    """Opens the announced address on a thread and keeps the last page."""

    def __init__(self, visit: Callable[[str], requests.Response] = lambda address: requests.get(address, timeout=10)):
        self.address, self.port = "", 0
        self._visit, self._pool = visit, ThreadPoolExecutor(1)

    def announce(self, address: str, port: int) -> None:
        self.address, self.port = address, port
        self._page = self._pool.submit(self._visit, address)

    @property
    def page(self) -> requests.Response:
        return self._page.result(10)


def bring(**query: str) -> Callable[[str], requests.Response]:
    """A browser that redirects with that query, in which STATE is replaced by the valid state."""

    def visit(address: str) -> requests.Response:
        payload = {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}
        given = {name: value.replace("STATE", payload["state"]) for name, value in query.items()}
        return requests.get(f"{payload['redirect_uri']}?{urlencode(given)}", timeout=10)

    return visit


def signing_in(config: SignInConfig, browser: Browser, seconds: float = 10) -> object:
    return sign_in(URL, config, announce=browser.announce, browser=False, seconds=seconds)


def test_a_person_signs_in(auth: AuthorizationServer) -> None:
    browser, config = Browser(), config_of(auth)
    found = sign_in(URL, config, announce=browser.announce, browser=False)
    (token,) = auth.tokens
    assert (found.access_token, found.refresh_token) == (token.access_token, token.refresh_token)
    assert found.expires_at == pytest.approx(time.time() + 3600, abs=30)
    assert (found.auth0_domain, found.audience, found.client_id) == (auth.domain, AUDIENCE, CLIENT_ID)
    assert found.arkor_cloud_api_url == URL
    assert browser.page.status_code == 200
    assert "You can close this page" in browser.page.text


def test_the_requests_of_a_login(auth: AuthorizationServer) -> None:
    config = config_of(auth)
    sign_in(URL, config, announce=Browser().announce, browser=False)
    payload, exchanged = auth.requests
    form = {name: values[0] for name, values in parse_qs(exchanged.body.decode()).items()}
    digest = hashlib.sha256(form["code_verifier"].encode()).digest()
    redirect_uri = f"http://127.0.0.1:{config.callback_ports[0]}/callback"
    assert {name: value for name, value in payload.query.items() if name != "state"} == {
        "response_type": "code",
        "client_id": CLIENT_ID,
        "redirect_uri": redirect_uri,
        "scope": "openid profile email offline_access",
        "audience": AUDIENCE,
        "code_challenge": base64.urlsafe_b64encode(digest).decode().rstrip("="),
        "code_challenge_method": "S256",
    }
    assert len(payload.query["state"]) >= 32
    assert form == {
        "grant_type": "authorization_code",
        "client_id": CLIENT_ID,
        "code": auth.given[0],
        "code_verifier": form["code_verifier"],
        "redirect_uri": redirect_uri,
    }


def test_every_sign_in_has_its_own_secrets(auth: AuthorizationServer) -> None:
    config = config_of(auth)
    for _ in range(2):
        sign_in(URL, config, announce=Browser().announce, browser=False)
    first, second = (request.query for request in auth.requests if request.path == "/authorize")
    assert first["state"] != second["state"]
    assert first["code_challenge"] != second["code_challenge"]


def test_the_sign_in_renews_itself_later(auth: AuthorizationServer) -> None:
    found = sign_in(URL, config_of(auth), announce=Browser().announce, browser=False)
    auth.expire_all()
    refused = Answer(401, {"error": "expired"})
    with HttpServer(lambda request: Answer(body={"ok": True}) if auth.accepts(request.headers) else refused) as api:
        assert HttpClient(OAuthAuth(api.url, found)).call("GET", "/v1/x") == {"ok": True}


# Ports


def test_the_next_port_is_used_if_one_is_taken(auth: AuthorizationServer) -> None:
    browser = Browser()
    taken, free = free_ports(2)
    with closing(socket.create_server(("127.0.0.1", taken))):
        signing_in(config_of(auth, (taken, free)), browser)
    assert browser.port == free


def test_all_ports_taken(auth: AuthorizationServer) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CredentialsError, match=rf"ports {port} of this machine, but all of them are in use"):
            signing_in(config_of(auth, (port,)), Browser())
    assert auth.requests == []


def test_the_port_is_free_again_afterwards(auth: AuthorizationServer) -> None:
    config = config_of(auth)
    for _ in range(3):
        signing_in(config, Browser())
    with pytest.raises(requests.ConnectionError):
        requests.get(f"http://127.0.0.1:{config.callback_ports[0]}/callback", timeout=30)


# The redirect


@pytest.mark.parametrize("given", [{}, {"state": ""}, {"state": "other"}, {"state": "STATEx"}, {"state": "é"}])
def test_the_state_must_match(auth: AuthorizationServer, given: dict[str, str]) -> None:
    browser = Browser(bring(code=OF_OTHERS, **given))
    with pytest.raises(CredentialsError, match=r"its state does not match.*arkor login --oauth") as caught:
        signing_in(config_of(auth), browser)
    assert browser.page.status_code == 400
    assert OF_OTHERS not in f"{browser.page.text} {caught.getrepr()}"
    assert auth.requests == []


def test_a_repeated_parameter_is_ignored() -> None:
    assert parse_authorization_response("code=c&state=s", "s").code == "c"
    assert parse_authorization_response("code=c&state=s&state=x", "s").problem
    assert parse_authorization_response("code=c&code=d&state=s", "s").problem == "the redirect contains no code"


def test_denied_access(auth: AuthorizationServer) -> None:
    auth.consents = False
    browser = Browser()
    with pytest.raises(CredentialsError, match="you are not signed in: access was denied"):
        signing_in(config_of(auth), browser)
    assert "Login failed: access was denied" in browser.page.text
    assert "You can close this page" in browser.page.text


@pytest.mark.parametrize(
    ("error", "description", "sentence"),
    [
        ("server_error", "", "the authorization server answered server_error;"),
        ("access_denied", "Please verify your email.", r"access was denied \(Please verify your email\.\);"),
        ("<b>", "\x1b[31m<script>\n", r"the authorization server answered an unknown error \(\[31m<script>\);"),
    ],
)
def test_an_error_of_the_authorization_server_is_shown(
    auth: AuthorizationServer, error: str, description: str, sentence: str
) -> None:
    browser = Browser(bring(error=error, error_description=description, state="STATE"))
    with pytest.raises(CredentialsError, match=sentence):
        signing_in(config_of(auth), browser)
    assert "<script" not in browser.page.text
    assert "<b>" not in browser.page.text


def test_the_page_loads_and_leaks_nothing(auth: AuthorizationServer) -> None:
    browser = Browser()
    signing_in(config_of(auth), browser)
    page = browser.page
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert page.headers["Cache-Control"] == "no-store"
    assert page.headers["Referrer-Policy"] == "no-referrer"
    assert not [word for word in ("http:", "https:", "src=", "<script", *auth.secrets) if word in page.text]


def test_other_requests_of_the_browser_are_ignored(auth: AuthorizationServer) -> None:
    def visit(address: str) -> requests.Response:
        port = urlsplit(parse_qs(urlsplit(address).query)["redirect_uri"][0]).port
        for path in ("/favicon.ico", "/", "/callback/x"):
            assert requests.get(f"http://127.0.0.1:{port}{path}", timeout=30).status_code == 404
        assert requests.post(f"http://127.0.0.1:{port}/callback", timeout=30).status_code == 501
        with socket.create_connection(("127.0.0.1", port or 0)):  # a connection that is never used
            return requests.get(address, timeout=10)

    browser = Browser(visit)
    signing_in(config_of(auth), browser)
    assert browser.page.status_code == 200


def test_only_the_first_redirect_counts() -> None:
    with CallbackServer(free_ports(1), "s") as callback_server:
        first = requests.get(f"{callback_server.redirect_uri}?code=one&state=s", timeout=30)
        second = requests.get(f"{callback_server.redirect_uri}?code=two&state=s", timeout=30)
        assert callback_server.wait(30) == "one"
    assert (first.status_code, second.status_code) == (200, 404)


def test_a_login_that_is_not_completed_times_out(auth: AuthorizationServer) -> None:
    config = config_of(auth)
    with pytest.raises(CredentialsError, match=r"was not completed within 0\.005 minutes"):
        sign_in(URL, config, announce=lambda *_: None, browser=False, seconds=0.3)
    socket.create_server(("127.0.0.1", config.callback_ports[0])).close()


# The code for a token


def test_an_invalid_code_is_rejected(auth: AuthorizationServer) -> None:
    browser = Browser(bring(code=OF_OTHERS, state="STATE"))
    with pytest.raises(CredentialsError, match=r"not signed in \(.* answered invalid_grant\); sign in again") as caught:
        signing_in(config_of(auth), browser)
    assert OF_OTHERS not in str(caught.getrepr())


def test_a_code_of_another_login_is_rejected(auth: AuthorizationServer) -> None:
    """A code is bound to the verifier of its login."""
    theirs = requests.get(
        f"http://{auth.domain}/authorize",
        params={
            "response_type": "code",
            "client_id": CLIENT_ID,
            "redirect_uri": "http://127.0.0.1:1/callback",
            "code_challenge": "c" * 43,
            "code_challenge_method": "S256",
        },
        allow_redirects=False,
        timeout=30,
    )
    assert theirs.status_code == 302
    with pytest.raises(CredentialsError, match="invalid_grant"):
        signing_in(config_of(auth), Browser(bring(code=auth.given[0], state="STATE")))
    assert auth.tokens == []


def test_an_unavailable_authorization_server(auth: AuthorizationServer) -> None:
    auth.faults = [Answer(503)]
    with pytest.raises(BackendUnavailable, match="which signs you in, answered 503 without a token"):
        signing_in(config_of(auth), Browser(bring(code="secret-code", state="STATE")))


def test_a_response_without_a_refresh_token(auth: AuthorizationServer) -> None:
    auth.faults = [Answer(body={"access_token": "t", "expires_in": 60})]
    browser = Browser(bring(code="c", state="STATE"))
    found = sign_in(URL, config_of(auth), announce=browser.announce, browser=False)
    assert (found.access_token, found.refresh_token) == ("t", "")


def test_no_secret_shows(auth: AuthorizationServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    browser, config = Browser(), config_of(auth)
    found = signing_in(config, browser)
    ours = [record.getMessage() for record in caplog.records if record.threadName == threading.main_thread().name]
    (form,) = (request.body.decode() for request in auth.requests if request.method == "POST")
    verifier = parse_qs(form)["code_verifier"][0]
    shown = f"{found!r} {browser.page.text} {ours}"
    assert not [secret for secret in (*auth.secrets, verifier) if secret in shown]
    assert verifier not in browser.address


# The configuration of a backend


def test_the_oauth_configuration() -> None:
    body = {
        "auth0Domain": "login.example",
        "clientId": "c",
        "audience": "a",
        "callbackPorts": [4000, "x", 0, 70000, 4001],
    }
    with HttpServer(Answer(body=body)) as server:
        assert sign_in_config(server.url) == SignInConfig("login.example", "c", "a", (4000, 4001))
    (request,) = server.requests
    assert (request.method, request.path) == ("GET", "/v1/auth/cli/config")
    assert "authorization" not in request.headers


@pytest.mark.parametrize("missing", ["auth0Domain", "clientId"])
def test_a_backend_without_oauth(missing: str) -> None:
    body = {"auth0Domain": "login.example", "clientId": "c", "audience": "a", "callbackPorts": [4000], missing: None}
    with HttpServer(Answer(body=body)) as server:
        assert sign_in_config(server.url) is None


@pytest.mark.parametrize(
    "wrong",
    [{"auth0Domain": "http://x/"}, {"auth0Domain": 7}, {"clientId": []}, {"clientId": {"a": 1}}, {"callbackPorts": []},
     {"callbackPorts": "4000"}, {"callbackPorts": [True, -1]}, {"audience": 7}],
)  # fmt: skip
def test_an_invalid_oauth_configuration(wrong: dict[str, object]) -> None:
    body = {"auth0Domain": "login.example", "clientId": "c", "audience": "a", "callbackPorts": [4000], **wrong}
    with HttpServer(Answer(body=body)) as server:
        if not wrong.get("clientId", "c"):
            assert sign_in_config(server.url) is None
            return
        with pytest.raises(CredentialsError, match=r"the OAuth configuration of .* is invalid"):
            sign_in_config(server.url)


def test_a_backend_without_that_route() -> None:
    with HttpServer(Answer(404, {"error": "Not found."})) as server, pytest.raises(CloudApiError):
        sign_in_config(server.url)
    assert Auth(server.url).token is None
