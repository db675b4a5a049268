"""OAuth credentials that renew themselves, once for all threads and processes that use them."""

from __future__ import annotations

import logging
import math
import os
import re
import threading
import time
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from typing import Any

from attrs import evolve
from urllib3.exceptions import HTTPError

from arkor.client.auth.credentials import (
    Credentials,
    OAuthCredentials,
    credentials_lock,
    read_credentials,
    write_credentials,
)
from arkor.client.http.auth import Auth, checked_token
from arkor.client.http.decoding import parse_object
from arkor.client.http.errors import unavailable_error
from arkor.client.http.session import Session
from arkor.client.http.urls import checked_url, is_loopback_url
from arkor.errors import BackendUnavailable, CredentialsError, InvalidConfig, is_transient
from arkor.protocol.transport import HeaderAuth
from arkor.settings import VERSION

logger = logging.getLogger("arkor")

#: Seconds before its expiry at which a token is renewed, and between two attempts to do so.
REFRESH_BEFORE = 60.0
REFRESH_RETRY = 10.0
#: Seconds to connect to an authorization server, and between two bytes of its response.
TIMEOUT = (10.0, 15.0)

SIGN_IN_AGAIN = "sign in again: arkor login --oauth"
_DEFAULT_LIFETIME = 3600.0  # seconds, if the server names none
_MAX_LIFETIME = 10 * 365 * 86_400.0
_MAX_RESPONSE_BYTES = 64 * 1024
_ERROR_CODE = re.compile(r"[a-z_]{1,40}")

#: Access token → the credentials that replaced it; refresh token → why it was rejected.
_successors: dict[str, OAuthCredentials] = {}
_rejections: dict[str, str] = {}
_refresh_lock = threading.Lock()


def _after_fork() -> None:
    global _refresh_lock  # noqa: PLW0603 - a thread that holds it does not exist in the child
    _refresh_lock = threading.Lock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)


def auth_for(
    base_url: str, credentials: Credentials | None, *, from_file: bool = False, source: str = "base_url"
) -> Auth:
    """Return the `Auth` for a backend; renewals of stored credentials are stored as well."""
    if not isinstance(credentials, OAuthCredentials):
        return Auth(base_url, credentials.bearer if credentials else None, source=source)
    return OAuthAuth(base_url, credentials, stored=from_file or _read_stored() == credentials, source=source)


class OAuthAuth(Auth):
    """An `Auth` whose token is renewed before it expires and when a backend rejects it.

    `stored` credentials come from the credentials file: changes that other processes make there are
    used, and renewed credentials are written there.
    """

    def __init__(
        self, base_url: str, credentials: OAuthCredentials, *, stored: bool = False, source: str = "base_url"
    ) -> None:
        super().__init__(base_url, credentials.access_token, source=source)
        self._is_stored = stored
        self._credentials = credentials
        self._refresh_at = credentials.expires_at - REFRESH_BEFORE

    def prepare(self) -> None:
        """Renew a token that expires soon; only log a failure, as the token may still work."""
        token = self.token
        if time.time() < self._refresh_at:
            return
        self._refresh_at = time.time() + REFRESH_RETRY  # so that other threads do not wait for this one
        try:
            self._refresh(token)
        except BackendUnavailable as error:
            logger.info("the sign-in expires soon and could not be renewed yet: %s", error)
        except CredentialsError as error:
            self._refresh_at = math.inf
            logger.info("the sign-in expires soon and cannot be renewed: %s", error)

    def refresh_token(self, rejected: str | None) -> bool:
        self._refresh(rejected)
        return True

    def _refresh(self, stale: str | None) -> None:
        with _refresh_lock:
            if self.token != stale:
                return  # renewed by another thread
            with credentials_lock() if self._is_stored else nullcontext():
                current = self._latest()
                if current.access_token == stale or current.expires_at <= time.time():
                    current = self._replace(current)
            left = current.expires_at - time.time()
            self._credentials = current
            self._refresh_at = current.expires_at - min(REFRESH_BEFORE, left / 2)  # some tokens last for seconds only
            self.token = current.access_token  # last, because it is read without the lock

    def _latest(self) -> OAuthCredentials:
        """Return the credentials as renewed by other processes, or by other clients of this one."""
        latest, stored = self._credentials, _read_stored() if self._is_stored else None
        if stored is not None and _identity(stored) == _identity(latest):
            latest = stored
        while latest.access_token in _successors:
            latest = _successors[latest.access_token]
        return latest

    def _replace(self, old: OAuthCredentials) -> OAuthCredentials:
        new = refresh(old)
        if new.access_token != old.access_token:
            _successors[old.access_token] = new
        logger.info("the sign-in was renewed; its token is valid for %.0f s", new.expires_at - time.time())
        if self._is_stored and (stored := _read_stored()) and stored.refresh_token == old.refresh_token:
            try:
                write_credentials(new)
            except CredentialsError as error:
                logger.warning("the renewed sign-in is only used by this process: %s", error)
        return new


def _read_stored() -> OAuthCredentials | None:
    """Return the stored OAuth credentials; None if they are missing or unreadable."""
    with suppress(CredentialsError):
        stored = read_credentials()
        return stored if isinstance(stored, OAuthCredentials) else None
    return None


def _identity(credentials: OAuthCredentials) -> tuple[str | None, ...]:
    """Return the parts that stay the same when credentials are renewed."""
    return credentials.auth0_domain, credentials.client_id, credentials.audience, credentials.arkor_cloud_api_url


# The authorization server


def refresh(credentials: OAuthCredentials) -> OAuthCredentials:
    """Return renewed credentials, unstored; raise `CredentialsError` if the sign-in has expired."""
    if not credentials.refresh_token:
        raise CredentialsError("your sign-in has expired and has no refresh token", remedy=SIGN_IN_AGAIN)
    if problem := _rejections.get(credentials.refresh_token):
        raise CredentialsError(problem, remedy=SIGN_IN_AGAIN)
    form = {
        "grant_type": "refresh_token",
        "client_id": credentials.client_id,
        "refresh_token": credentials.refresh_token,
    }
    try:
        renewed = request_token(credentials.auth0_domain, form)
    except CredentialsError as error:
        _rejections[credentials.refresh_token] = error.problem
        raise
    return evolve(credentials, **renewed)


def authorization_server(domain: str) -> str:
    """Return the URL of an `auth0Domain`, without TLS on this machine; raise `CredentialsError`."""
    try:
        scheme = "http" if is_loopback_url(f"//{domain}") else "https"
        url = checked_url(f"{scheme}://{domain}")
    except (InvalidConfig, ValueError):
        url = ""
    if not url or any(c in domain for c in "/\\") or not domain.isprintable() or " " in domain:
        problem = f"the auth0Domain of the sign-in, {domain!r}, is not a host name"
        raise CredentialsError(problem, remedy=SIGN_IN_AGAIN)
    return url


def request_token(
    domain: str, form: Mapping[str, str], *, task: str = "renews your sign-in", rejected: str = "your sign-in has ended"
) -> dict[str, Any]:
    """Return the fields of `OAuthCredentials` that the token endpoint sets.

    Raise `CredentialsError` (`rejected`, and the reason) if the server rejects the request,
    `BackendUnavailable` after a transient failure; `task` is the purpose of the request.
    """
    server, requested_at = authorization_server(domain), time.time()
    try:
        status, body = _post(f"{server}/oauth/token", form)
    except (OSError, HTTPError) as error:  # the errors of requests are OSErrors
        raise unavailable_error(f"{server}, which {task},", error) from None
    response = parse_object(body)
    given = (response.get("access_token"), response.get("refresh_token"))
    access_token, refresh_token = (value if isinstance(value, str) else "" for value in given)
    if status == 200 and checked_token(access_token or None):
        expires_at = requested_at + _lifetime_of(response.get("expires_in"))
        fields = {"access_token": access_token, "refresh_token": refresh_token, "expires_at": expires_at}
        return {name: value for name, value in fields.items() if value}
    if 400 <= status < 500 and not is_transient(status) and "error" in response:
        code = response["error"]  # the description is left out, because it may quote what was sent
        reason = code if isinstance(code, str) and _ERROR_CODE.fullmatch(code) else "an unknown error"
        raise CredentialsError(f"{rejected} ({domain} answered {reason})", remedy=SIGN_IN_AGAIN)
    problem = f"{server}, which {task}, answered {status} without a token"
    raise BackendUnavailable(problem, remedy=f"try again; if that does not help, {SIGN_IN_AGAIN}")


def _post(url: str, form: Mapping[str, str]) -> tuple[int, bytes]:
    """Return the status and the start of the body; follow no redirect with the form's secrets.

    The request is not cancellable: losing the response may lose the refresh token that replaces the
    one in the form, which would end the sign-in.
    """
    with Session() as session:
        headers = {"Accept": "application/json", "User-Agent": f"arkor/{VERSION}"}
        with session.post(
            url, data=form, headers=headers, auth=HeaderAuth(), timeout=TIMEOUT, allow_redirects=False, stream=True
        ) as response:
            return response.status_code, response.raw.read(_MAX_RESPONSE_BYTES, decode_content=True)


def _lifetime_of(expires_in: Any) -> float:
    """Return the seconds that a token is valid; a default if `expires_in` is missing or invalid."""
    if isinstance(expires_in, bool) or not isinstance(expires_in, (int, float)):
        return _DEFAULT_LIFETIME
    return float(min(expires_in, _MAX_LIFETIME)) if expires_in > 0 else _DEFAULT_LIFETIME
