"""An authorization server on loopback: Authlib's, with one public client and PKCE (S256).

Codes and refresh tokens work once; a refresh token that is used again ends the sign-in, as where reuse counts as theft.
"""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl

from attrs import define, field
from authlib.oauth2 import rfc6749 as oauth
from authlib.oauth2.rfc6749.requests import BasicOAuth2Payload
from authlib.oauth2.rfc6750 import BearerTokenGenerator
from authlib.oauth2.rfc7636 import CodeChallenge

from arkor.client.auth.credentials import OAuthCredentials
from tests.fakes.http_server import Answer, HttpServer, Request

CLIENT_ID = "arkor-cli"
AUDIENCE = "https://api.arkor.example"
SCOPE = "openid offline_access"
REDIRECT_URI = r"http://127\.0\.0\.1:\d+/callback"
GRANTS = ("authorization_code", "refresh_token")


def _random(**_: object) -> str:
    return secrets.token_urlsafe(24)


CLIENT = SimpleNamespace(
    get_allowed_scope=lambda scope: scope or "",
    check_endpoint_auth_method=lambda method, endpoint: (method, endpoint) == ("none", "token"),
    check_grant_type=lambda grant_type: grant_type in GRANTS,
    check_response_type=lambda response_type: response_type == "code",
    check_redirect_uri=lambda uri: re.fullmatch(REDIRECT_URI, uri) is not None,
)


@define(eq=False)
class _Token(oauth.TokenMixin):
    """An issued token; `family` identifies the sign-in that it descends from."""

    access_token: str = field(factory=_random)
    refresh_token: str = field(factory=_random)
    family: str = field(factory=_random)
    spent: bool = False

    def check_client(self, client: object) -> bool:
        return True

    def get_scope(self) -> str:
        return SCOPE


class _S256(CodeChallenge):
    SUPPORTED_CODE_CHALLENGE_METHOD = ("S256",)


class _CodeGrant(oauth.grants.AuthorizationCodeGrant):
    TOKEN_ENDPOINT_AUTH_METHODS = ("none",)

    def save_authorization_code(self, code: str, request: SimpleNamespace) -> None:
        issued = SimpleNamespace(**request.payload.data, code=code, get_scope=lambda: SCOPE)
        issued.get_redirect_uri = lambda: issued.redirect_uri
        self.server.codes.append(issued)
        self.server.given.append(code)

    def query_authorization_code(self, code: str, client: object) -> SimpleNamespace | None:
        return next((known for known in self.server.codes if known.code == code), None)

    def delete_authorization_code(self, authorization_code: SimpleNamespace) -> None:
        self.server.codes.remove(authorization_code)

    def authenticate_user(self, authorization_code: SimpleNamespace) -> str:
        return _random()


class _RefreshGrant(oauth.grants.RefreshTokenGrant):
    TOKEN_ENDPOINT_AUTH_METHODS = ("none",)
    INCLUDE_NEW_REFRESH_TOKEN = True

    def authenticate_refresh_token(self, refresh_token: str) -> _Token | None:
        token = next((token for token in self.server.tokens if token.refresh_token == refresh_token), None)
        if token is not None and token.spent:
            self.server.ended.add(token.family)
        return None if token is None or token.family in self.server.ended else token

    def authenticate_user(self, credential: _Token) -> str:
        return credential.family

    def revoke_old_credential(self, credential: _Token) -> None:
        credential.spent = True


def _oauth_request(method: str, form: dict[str, str], headers: dict[str, str]) -> SimpleNamespace:
    """The attributes of a request that Authlib's grants read and set."""
    unset = dict.fromkeys(("scope", "authorization_code", "client", "user", "auth_method", "refresh_token"))
    return SimpleNamespace(method=method, form=form, headers=headers, payload=BasicOAuth2Payload(form), **unset)


class AuthorizationServer(oauth.AuthorizationServer):
    """`lifetime` and `delay` (before each answer) are in seconds; `faults` are answers that are given first.

    `consents` says whether the person who comes to sign in agrees; `given` are the codes that were given out.
    """

    def __init__(self, *, lifetime: int = 3600, delay: float = 0.0) -> None:
        super().__init__()
        self.delay = delay
        self.faults: list[Answer] = []
        self.tokens: list[_Token] = []
        self.ended: set[str] = set()
        self.consents = True
        self.codes: list[SimpleNamespace] = []
        self.given: list[str] = []
        self._lock = threading.Lock()
        self.register_grant(_CodeGrant, [_S256(required=True)])
        self.register_grant(_RefreshGrant)
        self.register_token_generator("default", BearerTokenGenerator(_random, _random, lambda *_: lifetime))
        self.http = HttpServer(self._answer)

    @property
    def domain(self) -> str:
        return self.http.url.removeprefix("http://")

    @property
    def requests(self) -> list[Request]:
        return self.http.requests

    @property
    def secrets(self) -> list[str]:
        """Everything that must never be shown."""
        return [text for token in self.tokens for text in (token.access_token, token.refresh_token)] + self.given

    def sign_in(self, url: str | None = None, *, seconds_left: float = 3600.0) -> OAuthCredentials:
        """A person's sign-in for the backend at `url`, whose token is said to hold for so many seconds."""
        token = _Token()
        self.tokens.append(token)
        end = time.time() + seconds_left
        return OAuthCredentials(token.access_token, token.refresh_token, end, self.domain, AUDIENCE, CLIENT_ID, url)

    def accepts(self, headers: dict[str, str]) -> bool:
        """Whether a backend should accept a request: it comes with the newest token of a sign-in."""
        good = [token.access_token for token in self.tokens if not token.spent and token.family not in self.ended]
        return headers.get("authorization") in [f"Bearer {access_token}" for access_token in good]

    def expire_all(self) -> None:
        """No backend accepts an access token any more; the refresh tokens stay good."""
        for token in self.tokens:
            token.access_token = f"expired-{token.access_token}"

    def _answer(self, request: Request) -> Answer:
        time.sleep(self.delay)
        with self._lock:
            if self.faults:
                return self.faults.pop(0)
            answer: Answer
            if (request.method, request.path) == ("GET", "/authorize"):
                asked = _oauth_request("GET", request.query, request.headers)
                if "code_challenge" not in asked.form:
                    return Answer(400, {"error": "invalid_request"})
                grant = self.get_authorization_grant(asked)
                answer = self.create_authorization_response(asked, "a person" if self.consents else None, grant)
                return answer
            if (request.method, request.path) != ("POST", "/oauth/token"):
                return Answer(404, {"error": "not_found"})
            if request.headers.get("content-type") != "application/x-www-form-urlencoded":
                return Answer(400, {"error": "invalid_request"})
            form = dict(parse_qsl(request.body.decode()))
            answer = self.create_token_response(_oauth_request("POST", form, request.headers))
            return answer

    # The interface of Authlib's server

    def query_client(self, client_id: str) -> SimpleNamespace | None:
        return CLIENT if client_id == CLIENT_ID else None

    def create_oauth2_request(self, request: SimpleNamespace) -> SimpleNamespace:
        return request

    def save_token(self, token: dict[str, Any], request: SimpleNamespace) -> None:
        self.tokens.append(_Token(token["access_token"], token["refresh_token"], request.user))

    def send_signal(self, name: str, *args: object, **kwargs: object) -> None: ...

    def handle_response(self, status: int, body: dict[str, Any], headers: list[tuple[str, str]]) -> Answer:
        return Answer(status, body, dict(headers))


@contextmanager
def authorizing(*, lifetime: int = 3600, delay: float = 0.0) -> Iterator[AuthorizationServer]:
    server = AuthorizationServer(lifetime=lifetime, delay=delay)
    try:
        yield server
    finally:
        server.http.close()
