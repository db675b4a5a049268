"""Signing in as a person: the browser is sent to the sign-in server, and comes back with a code for a token (PKCE).

Nothing is written here; the file is the business of `credentials.py`, and renewing a sign-in that of `oauth.py`.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import threading
import time
import webbrowser
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlencode

from attrs import field, frozen

from arkor.client.auth.callback_server import CallbackServer
from arkor.client.auth.credentials import OAuthCredentials
from arkor.client.auth.oauth import authorization_server, lifetime_of, request_token
from arkor.client.http.client import Auth, HttpClient
from arkor.client.http.urls import checked_url
from arkor.errors import CredentialsError

#: Seconds for a person to sign in.
SIGN_IN_SECONDS = 300.0

SCOPE = "openid profile email offline_access"


@frozen
class SignInConfig:
    """How people sign in to a backend: at which server, as which client, and to which ports the browser comes back."""

    auth0_domain: str
    client_id: str
    audience: str = ""
    callback_ports: tuple[int, ...] = ()


@frozen
class _PkceSecrets:
    """What proves that the one who began a sign-in is the one who ends it."""

    verifier: str = field(repr=False, factory=lambda: secrets.token_urlsafe(48))
    state: str = field(repr=False, factory=lambda: secrets.token_urlsafe(24))

    @property
    def challenge(self) -> str:
        digest = hashlib.sha256(self.verifier.encode()).digest()
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def sign_in_config(base_url: str) -> SignInConfig | None:
    """How people sign in to that backend; None when they cannot, but only anonymously.

    Raises `CloudApiError`, `BackendUnavailable`, and `CredentialsError` for an answer that makes no sense.
    """
    url = checked_url(base_url)
    answer = HttpClient(Auth(url)).call("GET", "/v1/auth/cli/config")
    domain, client_id, audience = answer.get("auth0Domain"), answer.get("clientId"), answer.get("audience")
    if not domain or not client_id:
        return None
    ports = tuple(port for port in _list(answer.get("callbackPorts")) if type(port) is int and 0 < port < 65536)
    is_valid = isinstance(domain, str) and isinstance(client_id, str) and isinstance(audience, str | None) and ports
    if not is_valid or not _is_server(domain):
        raise CredentialsError(f"{url} says nothing sensible about signing in; is it the address of an Arkor backend?")
    return SignInConfig(domain, client_id, audience or "", ports)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_server(domain: str) -> bool:
    try:
        return bool(authorization_server(domain))
    except CredentialsError:
        return False


def sign_in(
    base_url: str,
    config: SignInConfig,
    *,
    announce: Callable[[str, int], object],
    browser: bool = True,
    seconds: float = SIGN_IN_SECONDS,
) -> OAuthCredentials:
    """Wait until a person has signed in, and return their sign-in for that backend.

    `announce` gets the address to sign in at and the port that the browser comes back to; `browser` opens one there.
    Raises `CredentialsError` when nobody signs in within so many `seconds`, or it is refused; `BackendUnavailable`.
    """
    pkce = _PkceSecrets()
    with CallbackServer(config.callback_ports, pkce.state) as callback_server:
        address = _authorization_url(config, pkce, callback_server.redirect_uri)
        announce(address, callback_server.port)
        if browser:  # on a thread: one in the terminal would keep us until it is left
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        code = callback_server.wait(seconds)
        redirect_uri = callback_server.redirect_uri
    return _exchange_code(base_url, config, pkce, code, redirect_uri)


def _authorization_url(config: SignInConfig, pkce: _PkceSecrets, redirect_uri: str) -> str:
    query = {
        "response_type": "code",
        "client_id": config.client_id,
        "redirect_uri": redirect_uri,
        "scope": SCOPE,
        **({"audience": config.audience} if config.audience else {}),
        "state": pkce.state,
        "code_challenge": pkce.challenge,
        "code_challenge_method": "S256",
    }
    return f"{authorization_server(config.auth0_domain)}/authorize?{urlencode(query, quote_via=quote)}"


def _exchange_code(
    base_url: str, config: SignInConfig, pkce: _PkceSecrets, code: str, redirect_uri: str
) -> OAuthCredentials:
    form = {
        "grant_type": "authorization_code",
        "client_id": config.client_id,
        "code": code,
        "code_verifier": pkce.verifier,
        "redirect_uri": redirect_uri,
    }
    asked_at = time.time()
    answer = request_token(config.auth0_domain, form, task="signs you in", rejected="you are not signed in")
    refresh_token = answer.get("refresh_token")
    return OAuthCredentials(
        access_token=answer["access_token"],
        refresh_token=refresh_token if isinstance(refresh_token, str) else "",
        expires_at=asked_at + lifetime_of(answer.get("expires_in")),
        auth0_domain=config.auth0_domain,
        audience=config.audience,
        client_id=config.client_id,
        arkor_cloud_api_url=checked_url(base_url),
    )
