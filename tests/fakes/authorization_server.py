"""A real authorization server on loopback: Authlib's, with one public client whose codes and refresh tokens work once.

Whoever comes to sign in is let in at once, or denied; codes are given out with PKCE (S256) alone. A refresh token that is used a second time ends the sign-in, as it does where reuse is taken for theft.
"""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
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


def _random(**_: object) -> str:
    return secrets.token_urlsafe(24)


class _Client(oauth.ClientMixin):
    def get_allowed_scope(self, scope: str) -> str:
        return scope or ""

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return (method, endpoint) == ("none", "token")

    def check_grant_type(self, grant_type: str) -> bool:
        return grant_type in ("authorization_code", "refresh_token")

    def check_response_type(self, response_type: str) -> bool:
        return response_type == "code"

    def check_redirect_uri(self, redirect_uri: str) -> bool:
        return re.fullmatch(r"http://127\.0\.0\.1:\d+/callback", redirect_uri) is not None


@define(eq=False)
class _Token(oauth.TokenMixin):
    """What was issued; `family` is the sign-in that it descends from."""

    access_token: str = field(factory=_random)
    refresh_token: str = field(factory=_random)
    family: str = field(factory=_random)
    spent: bool = False

    def check_client(self, client: object) -> bool:
        return True

    def get_scope(self) -> str:
        return "openid offline_access"


@define(eq=False)
class _Code(oauth.AuthorizationCodeMixin):
    """What the browser carries; it is good for one token."""

    code: str
    redirect_uri: str
    code_challenge: str
    code_challenge_method: str

    def get_redirect_uri(self) -> str:
        return self.redirect_uri

    def get_scope(self) -> str:
        return "openid offline_access"


class _S256(CodeChallenge):
    SUPPORTED_CODE_CHALLENGE_METHOD = ("S256",)


class _SigningIn(oauth.grants.AuthorizationCodeGrant):
    TOKEN_ENDPOINT_AUTH_METHODS = ("none",)

    def save_authorization_code(self, code: str, request: _Form) -> None:
        data = request.payload.data
        made = _Code(code, data["redirect_uri"], data["code_challenge"], data["code_challenge_method"])
        self.server.codes.append(made)
        self.server.given.append(code)

    def query_authorization_code(self, code: str, client: object) -> _Code | None:
        return next((known for known in self.server.codes if known.code == code), None)

    def delete_authorization_code(self, authorization_code: _Code) -> None:
        self.server.codes.remove(authorization_code)

    def authenticate_user(self, authorization_code: _Code) -> str:
        return _random()


class _Refreshing(oauth.grants.RefreshTokenGrant):
    TOKEN_ENDPOINT_AUTH_METHODS = ("none",)
    INCLUDE_NEW_REFRESH_TOKEN = True

    def authenticate_refresh_token(self, refresh_token: str) -> _Token | None:
        token = self.server.find(refresh_token)
        if token is not None and token.spent:
            self.server.ended.add(token.family)
        return None if token is None or token.family in self.server.ended else token

    def authenticate_user(self, credential: _Token) -> str:
        return credential.family

    def revoke_old_credential(self, credential: _Token) -> None:
        credential.spent = True


@define
class _Form:
    """A request to one of the two endpoints, in what Authlib's grants look at."""

    form: dict[str, str]
    headers: dict[str, str]
    payload: BasicOAuth2Payload = field(init=False)
    method: str = "POST"
    scope: str | None = None
    authorization_code: Any = None
    client: Any = None
    user: Any = None
    auth_method: str | None = None
    refresh_token: Any = None

    def __attrs_post_init__(self) -> None:
        self.payload = BasicOAuth2Payload(self.form)


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
        self.codes: list[_Code] = []
        self.given: list[str] = []
        self._lock = threading.Lock()
        self.register_grant(_SigningIn, [_S256(required=True)])
        self.register_grant(_Refreshing)
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
            if (request.method, request.path) == ("GET", "/authorize"):
                return self._authorize(_Form(request.query, request.headers, method="GET"))
            if (request.method, request.path) != ("POST", "/oauth/token"):
                return Answer(404, {"error": "not_found"})
            if request.headers.get("content-type") != "application/x-www-form-urlencoded":
                return Answer(400, {"error": "invalid_request"})
            answer: Answer = self.create_token_response(_Form(dict(parse_qsl(request.body.decode())), request.headers))
            return answer

    def _authorize(self, form: _Form) -> Answer:
        if "code_challenge" not in form.form:
            return Answer(400, {"error": "invalid_request"})
        grant = self.get_authorization_grant(form)
        answer: Answer = self.create_authorization_response(form, "a person" if self.consents else None, grant)
        return answer

    # What Authlib asks for

    def find(self, refresh_token: str) -> _Token | None:
        return next((token for token in self.tokens if token.refresh_token == refresh_token), None)

    def query_client(self, client_id: str) -> _Client | None:
        return _Client() if client_id == CLIENT_ID else None

    def create_oauth2_request(self, request: _Form) -> _Form:
        return request

    def save_token(self, token: dict[str, Any], request: _Form) -> None:
        self.tokens.append(_Token(token["access_token"], token["refresh_token"], request.user))

    def send_signal(self, name: str, *args: object, **kwargs: object) -> None:
        pass

    def handle_response(self, status: int, body: dict[str, Any], headers: list[tuple[str, str]]) -> Answer:
        return Answer(status, body, dict(headers))


@contextmanager
def authorizing(*, lifetime: int = 3600, delay: float = 0.0) -> Iterator[AuthorizationServer]:
    server = AuthorizationServer(lifetime=lifetime, delay=delay)
    try:
        yield server
    finally:
        server.http.close()
