"""A person's sign-in (OAuth), which renews itself, once for all threads and processes that use it.

Here is what is said to an authorization server. How a person comes to a sign-in is in `browser_login.py`; the file that
keeps it is the business of `credentials.py`; that a backend refused a token is noticed in `client/http/client.py`.
"""

from __future__ import annotations

import json
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
from arkor.client.http.client import Auth, checked_token
from arkor.client.http.errors import unavailable_error
from arkor.client.http.session import Session
from arkor.client.http.urls import checked_url, is_loopback
from arkor.errors import BackendUnavailable, CredentialsError, InvalidConfig
from arkor.settings import VERSION

logger = logging.getLogger("arkor")

#: Seconds before its end at which a token is renewed, and until that is tried again after it failed.
REFRESH_BEFORE = 60.0
REFRESH_RETRY = 10.0
#: Seconds to connect to an authorization server, and between two bytes of its answer.
TIMEOUT = (10.0, 15.0)

_SIGN_IN_AGAIN = "sign in again: arkor login --oauth"
_LIFETIME = 3600.0  # seconds that a token is believed to hold where the server does not say
_MAX_LIFETIME = 10 * 365 * 86_400.0
_MAX_RESPONSE_BYTES = 64 * 1024  # bytes
_CODE = re.compile(r"[a-z_]{1,40}")

#: Of this process: access token → the sign-in that took its place, and refresh token → why it is good no more.
_successors: dict[str, OAuthCredentials] = {}
_rejections: dict[str, str] = {}
_refresh_lock = threading.Lock()


def _after_fork() -> None:
    global _refresh_lock  # noqa: PLW0603 - a thread that held it is not in the child
    _refresh_lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def auth_for(base_url: str, credentials: Credentials | None, *, from_file: bool = False, why: str = "base_url") -> Auth:
    """The way to a backend with that sign-in. A renewed one is kept where it came from: in the file, or nowhere."""
    if not isinstance(credentials, OAuthCredentials):
        return Auth(base_url, credentials.bearer if credentials else None, source=why)
    return OAuthAuth(base_url, credentials, kept=from_file or _stored_sign_in() == credentials, why=why)


class OAuthAuth(Auth):
    """The way to a backend in a person's name, whose token is renewed before it expires and when it is refused.

    `kept` says that the sign-in is the one in the credentials file: what other processes made of it is taken over,
    and what becomes of it here is written there.
    """

    def __init__(
        self, base_url: str, credentials: OAuthCredentials, *, kept: bool = False, why: str = "base_url"
    ) -> None:
        super().__init__(base_url, credentials.access_token, source=why)
        self._is_stored = kept
        self._credentials = credentials
        self._due = credentials.expires_at - REFRESH_BEFORE

    def prepare(self) -> None:
        """Renew what expires soon. A fault is none yet: the old token may still be good, and says so if it is not."""
        token = self.token
        if time.time() < self._due:
            return
        self._due = time.time() + REFRESH_RETRY  # other threads need not wait for this one
        try:
            self._refresh(token)
        except BackendUnavailable as error:
            logger.info("the sign-in expires soon and could not be renewed yet: %s", error)
        except CredentialsError as error:
            self._due = math.inf
            logger.info("the sign-in expires soon and cannot be renewed: %s", error)

    def refresh_token(self, refused: str | None) -> bool:
        """Raises `CredentialsError` when the sign-in has ended, `BackendUnavailable` for a fault that may pass."""
        self._refresh(refused)
        return True

    def _refresh(self, stale: str | None) -> None:
        with _refresh_lock:
            if self.token != stale:
                return  # another thread was faster
            with credentials_lock() if self._is_stored else nullcontext():
                known = self._latest()
                if known.access_token == stale or known.expires_at <= time.time():
                    known = self._replace(known)
            self._apply(known)

    def _latest(self) -> OAuthCredentials:
        """What has become of the sign-in meanwhile, by another process or another trainer of this one."""
        latest, found = self._credentials, _stored_sign_in() if self._is_stored else None
        if found is not None and _identity(found) == _identity(latest):
            latest = found
        while latest.access_token in _successors:
            latest = _successors[latest.access_token]
        return latest

    def _replace(self, old: OAuthCredentials) -> OAuthCredentials:
        new = refresh(old)
        if new.access_token != old.access_token:
            _successors[old.access_token] = new
        logger.info("the sign-in was renewed; its token holds for %.0f s", new.expires_at - time.time())
        if self._is_stored and (in_file := _stored_sign_in()) and in_file.refresh_token == old.refresh_token:
            try:
                write_credentials(new)
            except CredentialsError as error:
                logger.warning("the renewed sign-in holds for this process alone: %s", error)
        return new

    def _apply(self, credentials: OAuthCredentials) -> None:
        left = credentials.expires_at - time.time()
        self._credentials = credentials
        self._due = credentials.expires_at - min(REFRESH_BEFORE, left / 2)  # some servers' tokens hold for seconds
        self.token = credentials.access_token  # last, for it is looked at without the lock


def _stored_sign_in() -> OAuthCredentials | None:
    """The sign-in in the file; None also when the file cannot be read, for we have one in memory."""
    with suppress(CredentialsError):
        found = read_credentials()
        return found if isinstance(found, OAuthCredentials) else None
    return None


def _identity(credentials: OAuthCredentials) -> tuple[str | None, ...]:
    """What stays the same while a sign-in is renewed, or replaced by a new one for the same backend."""
    return credentials.auth0_domain, credentials.client_id, credentials.audience, credentials.arkor_cloud_api_url


# The authorization server


def refresh(credentials: OAuthCredentials) -> OAuthCredentials:
    """A new access token for the refresh token, which the server may replace too; nothing is written.

    Raises `CredentialsError` when the sign-in has ended, `BackendUnavailable` for a fault that may pass.
    """
    if not credentials.refresh_token:
        raise CredentialsError(f"your sign-in has expired and has nothing to be renewed with; {_SIGN_IN_AGAIN}")
    if rejection := _rejections.get(credentials.refresh_token):
        raise CredentialsError(rejection)
    form = {
        "grant_type": "refresh_token",
        "client_id": credentials.client_id,
        "refresh_token": credentials.refresh_token,
    }
    asked_at = time.time()
    try:
        answer = request_token(credentials.auth0_domain, form)
    except CredentialsError as error:
        _rejections[credentials.refresh_token] = str(error)
        raise
    return evolve(
        credentials,
        access_token=answer["access_token"],
        refresh_token=_text_or_none(answer.get("refresh_token")) or credentials.refresh_token,
        expires_at=asked_at + lifetime_of(answer.get("expires_in")),
    )


def authorization_server(domain: str) -> str:
    """`"login.example"` → its URL; one on this machine itself is spoken to without TLS.

    Raises `CredentialsError` for what is no host name.
    """
    try:
        scheme = "http" if is_loopback(f"//{domain}") else "https"
        url = checked_url(f"{scheme}://{domain}")
    except (InvalidConfig, ValueError):
        url = ""
    if not url or any(c in domain for c in "/\\") or not domain.isprintable() or " " in domain:
        raise CredentialsError(f"the auth0Domain of the sign-in, {domain!r}, is no host name; {_SIGN_IN_AGAIN}")
    return url


def request_token(
    domain: str,
    form: Mapping[str, str],
    *,
    task: str = "renews your sign-in",
    rejected: str = "your sign-in has ended",
) -> dict[str, Any]:
    """What the token endpoint answers; it has an `access_token` that can stand in a header.

    Raises `CredentialsError` (`rejected`, and why) when the server says no, `BackendUnavailable` for a fault that may
    pass; `task` is what the server is asked for.
    """
    server = authorization_server(domain)
    try:
        status, body = _post(f"{server}/oauth/token", form)
    except (OSError, HTTPError) as error:  # what requests raises is an OSError
        raise unavailable_error(f"{server}, which {task},", error) from None
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    if isinstance(answer, dict):
        if status == 200 and _text_or_none(answer.get("access_token")):
            checked_token(answer["access_token"])
            return answer
        if 400 <= status < 500 and status not in (408, 429) and "error" in answer:
            raise CredentialsError(f"{rejected} ({domain} says {_error_code(answer)}); {_SIGN_IN_AGAIN}")
    raise BackendUnavailable(
        f"{server}, which {task}, answered {status} and no token; try again, and if it stays so, {_SIGN_IN_AGAIN}"
    )


def _post(url: str, form: Mapping[str, str]) -> tuple[int, bytes]:
    """Status and the beginning of the body. Follows no redirect: what the form holds is meant for this address.

    It hangs on no plug, but comes to its end even when nobody waits for it any more: to throw away a refresh token
    that was just replaced would be to sign the person out.
    """
    with Session() as session:
        response = session.post(
            url,
            data=form,
            headers={"Accept": "application/json", "User-Agent": f"arkor/{VERSION}"},
            auth=lambda request: request,  # keeps requests from adding a password of `.netrc`
            timeout=TIMEOUT,
            allow_redirects=False,
            stream=True,
        )
        with response:
            return response.status_code, response.raw.read(_MAX_RESPONSE_BYTES, decode_content=True)


def _text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _error_code(answer: Mapping[str, Any]) -> str:
    """The machine word of a refusal; its sentence is left out, for it may quote what was sent."""
    code = answer.get("error")
    return code if isinstance(code, str) and _CODE.fullmatch(code) else "no"


def lifetime_of(expires_in: Any) -> float:
    """Seconds that a token holds, whatever the server says."""
    if isinstance(expires_in, bool) or not isinstance(expires_in, (int, float)):
        return _LIFETIME
    return float(min(expires_in, _MAX_LIFETIME)) if expires_in > 0 else _LIFETIME
