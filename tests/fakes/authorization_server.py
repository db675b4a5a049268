"""An OAuth 2.0 authorization server on loopback (RFC 6749) with one public client and PKCE (RFC 7636, S256 only).

Codes and refresh tokens work once; a refresh token that is used again ends the sign-in, as where reuse counts as theft.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import threading
import time
from urllib.parse import parse_qsl, urlencode

from attrs import Factory, define

from arkor.client.auth.credentials import OAuthCredentials
from tests.fakes.http_server import Answer, HttpServer, Request

CLIENT_ID = "arkor-cli"
AUDIENCE = "https://api.arkor.example"
REDIRECT_URI = re.compile(r"http://127\.0\.0\.1:\d+/callback")


def _random() -> str:
    return secrets.token_urlsafe(24)


def _error(error: str, status: int = 400) -> Answer:
    return Answer(status, {"error": error})


@define(eq=False)
class _Token:
    """An issued token; `family` identifies the sign-in that it descends from."""

    access_token: str = Factory(_random)
    refresh_token: str = Factory(_random)
    family: str = Factory(_random)
    spent: bool = False


class AuthorizationServer:
    """`lifetime` and `delay` (before each answer) are in seconds; `faults` are answers that are given first.

    `consents` says whether the person who signs in agrees; `given` are the codes that were issued.
    """

    def __init__(self, *, lifetime: int = 3600, delay: float = 0.0) -> None:
        self.lifetime = lifetime
        self.delay = delay
        self.faults: list[Answer] = []
        self.tokens: list[_Token] = []
        self.ended: set[str] = set()
        self.consents = True
        self.given: list[str] = []
        self._requests_by_code: dict[str, dict[str, str]] = {}
        self._lock = threading.Lock()
        self.http = HttpServer(self._answer)

    def __enter__(self) -> AuthorizationServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

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
        """Credentials for the backend at `url` whose access token expires in `seconds_left`."""
        token = _Token()
        self.tokens.append(token)
        end = time.time() + seconds_left
        return OAuthCredentials(token.access_token, token.refresh_token, end, self.domain, AUDIENCE, CLIENT_ID, url)

    def accepts(self, headers: dict[str, str]) -> bool:
        """Whether a backend should accept a request: it has the newest token of a sign-in."""
        good = [token.access_token for token in self.tokens if not token.spent and token.family not in self.ended]
        return headers.get("authorization") in [f"Bearer {access_token}" for access_token in good]

    def expire_all(self) -> None:
        """Make every access token invalid; the refresh tokens stay valid."""
        for token in self.tokens:
            token.access_token = f"expired-{token.access_token}"

    def _answer(self, request: Request) -> Answer:
        time.sleep(self.delay)
        with self._lock:
            if self.faults:
                return self.faults.pop(0)
            if (request.method, request.path) == ("GET", "/authorize"):
                return self._authorize(request.query)
            if (request.method, request.path) != ("POST", "/oauth/token"):
                return _error("not_found", 404)
            if request.headers.get("content-type") != "application/x-www-form-urlencoded":
                return _error("invalid_request")
            return self._issue(dict(parse_qsl(request.body.decode())))

    def _authorize(self, query: dict[str, str]) -> Answer:
        required = {"client_id": CLIENT_ID, "response_type": "code", "code_challenge_method": "S256"}
        is_valid = all(query.get(name) == value for name, value in required.items()) and query.get("code_challenge")
        if not is_valid or not REDIRECT_URI.fullmatch(query.get("redirect_uri", "")):
            return _error("invalid_request")
        answer = {"error": "access_denied"}
        if self.consents:
            answer = {"code": _random()}
            self._requests_by_code[answer["code"]] = query
            self.given.append(answer["code"])
        state = {"state": query["state"]} if "state" in query else {}
        return Answer(302, b"", {"Location": f"{query['redirect_uri']}?{urlencode({**answer, **state})}"})

    def _issue(self, form: dict[str, str]) -> Answer:
        if form.get("client_id") != CLIENT_ID:
            return _error("invalid_client", 401)
        if form.get("grant_type") == "authorization_code":
            asked = self._requests_by_code.pop(form.get("code", ""), None)
            digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
            challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
            if asked is None or (form.get("redirect_uri"), challenge) != (
                asked["redirect_uri"],
                asked["code_challenge"],
            ):
                return _error("invalid_grant")
            token = _Token()
        elif form.get("grant_type") == "refresh_token":
            old = next((known for known in self.tokens if known.refresh_token == form.get("refresh_token")), None)
            if old is not None and old.spent:
                self.ended.add(old.family)
            if old is None or old.family in self.ended:
                return _error("invalid_grant")
            old.spent = True
            token = _Token(family=old.family)
        else:
            return _error("unsupported_grant_type")
        self.tokens.append(token)
        issued = {"access_token": token.access_token, "refresh_token": token.refresh_token, "token_type": "Bearer"}
        return Answer(200, {**issued, "expires_in": self.lifetime, "scope": "openid offline_access"})
