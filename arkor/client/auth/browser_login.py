"""OAuth login in a browser: the authorization code flow with PKCE. Nothing is stored here."""

from __future__ import annotations

import base64
import hashlib
import secrets
import threading
import webbrowser
from collections.abc import Callable
from urllib.parse import quote, urlencode

from attrs import field, frozen

from arkor.client.auth.callback_server import CallbackServer
from arkor.client.auth.credentials import OAuthCredentials
from arkor.client.auth.oauth import authorization_server, request_token
from arkor.client.http.auth import Auth
from arkor.client.http.client import HttpClient
from arkor.client.http.errors import CHECK_ADDRESS
from arkor.client.http.urls import checked_url
from arkor.errors import CredentialsError

#: Seconds that a person has to sign in.
SIGN_IN_SECONDS = 300.0

SCOPE = "openid profile email offline_access"


@frozen
class SignInConfig:
    """A backend's OAuth configuration; the browser is redirected to one of the `callback_ports`."""

    auth0_domain: str
    client_id: str
    audience: str = ""
    callback_ports: tuple[int, ...] = ()


@frozen
class _PkceSecrets:
    """The secrets of one login: the redirect must contain `state`, the token request `verifier`."""

    verifier: str = field(repr=False, factory=lambda: secrets.token_urlsafe(48))
    state: str = field(repr=False, factory=lambda: secrets.token_urlsafe(24))

    @property
    def challenge(self) -> str:
        digest = hashlib.sha256(self.verifier.encode()).digest()
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def sign_in_config(base_url: str) -> SignInConfig | None:
    """Return the OAuth configuration of a backend, or None; `CredentialsError` if it is invalid."""
    url = checked_url(base_url)
    response = HttpClient(Auth(url)).call("GET", "/v1/auth/cli/config")
    domain, client_id = response.get("auth0Domain"), response.get("clientId")
    audience, ports = response.get("audience"), response.get("callbackPorts")
    if not domain or not client_id:
        return None
    valid_ports = [p for p in ports if type(p) is int and 0 < p < 65536] if isinstance(ports, list) else []
    is_valid = isinstance(domain, str) and isinstance(client_id, str) and isinstance(audience, str | None)
    try:
        is_valid = is_valid and bool(authorization_server(domain)) and bool(valid_ports)
    except CredentialsError:
        is_valid = False
    if not is_valid:
        raise CredentialsError(f"the OAuth configuration of {url} is invalid", remedy=CHECK_ADDRESS)
    return SignInConfig(domain, client_id, audience or "", tuple(valid_ports))


def sign_in(
    base_url: str,
    config: SignInConfig,
    *,
    announce: Callable[[str, int], object],
    browser: bool = True,
    seconds: float = SIGN_IN_SECONDS,
) -> OAuthCredentials:
    """Wait until a person has signed in, and return the credentials for that backend.

    `announce` receives the URL and the port of the callback server; `browser` opens the URL.
    Raise `CredentialsError` after `seconds` or a denied login, and `BackendUnavailable`.
    """
    pkce = _PkceSecrets()
    with CallbackServer(config.callback_ports, pkce.state) as callback_server:
        redirect_uri = callback_server.redirect_uri
        url = _authorization_url(config, pkce, redirect_uri)
        announce(url, callback_server.port)
        if browser:  # on a thread, because a browser in the terminal blocks until it is closed
            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
        code = callback_server.wait(seconds)
    form = {
        "grant_type": "authorization_code",
        "client_id": config.client_id,
        "code": code,
        "code_verifier": pkce.verifier,
        "redirect_uri": redirect_uri,
    }
    token = request_token(config.auth0_domain, form, task="signs you in", rejected="you are not signed in")
    return OAuthCredentials(
        **{"refresh_token": "", **token},
        auth0_domain=config.auth0_domain,
        audience=config.audience,
        client_id=config.client_id,
        arkor_cloud_api_url=checked_url(base_url),
    )


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
