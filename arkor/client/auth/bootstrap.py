"""Find the credentials for a backend, or obtain anonymous ones."""

from __future__ import annotations

import logging
from typing import Literal

from attrs import evolve

from arkor.client.auth.credentials import (
    AnonymousCredentials,
    Credentials,
    TokenCredentials,
    check_backend,
    credentials_lock,
    credentials_path,
    default_cloud_api_url,
    read_credentials,
    write_credentials,
)
from arkor.client.http.auth import Auth, checked_token
from arkor.client.http.client import HttpClient
from arkor.client.http.errors import CHECK_ADDRESS
from arkor.client.http.urls import checked_url
from arkor.errors import CloudApiError, CredentialsError, Problem
from arkor.settings import cloud_api_url_from_env, token_from_env

logger = logging.getLogger("arkor")


def ensure_credentials(base_url: str | None = None, *, incidental: bool = False) -> Credentials:
    """Return the user's credentials for that backend, or obtain and store anonymous ones.

    `ARKOR_TOKEN` takes precedence at the backend of `ARKOR_CLOUD_API_URL`. Concurrent processes get
    the same credentials. Stored ones are never replaced: raise `CredentialsError` if they are for
    another backend, or if the backend issues no anonymous identities. `incidental`: see
    `AnonymousCredentials`.
    """
    if credentials := credentials_from_env(base_url):
        return credentials
    stored = read_credentials()
    url = checked_url(base_url or default_cloud_api_url(stored))
    return check_backend(stored or _obtain(url, incidental), url)


def credentials_from_env(base_url: str | None = None) -> TokenCredentials | None:
    """Return `ARKOR_TOKEN` as credentials if the backend is that of `ARKOR_CLOUD_API_URL`."""
    token, url = token_from_env(), cloud_api_url_from_env()
    if token is None or url is None or (base_url is not None and checked_url(base_url) != checked_url(url)):
        return None
    try:
        return TokenCredentials(checked_token(token) or "", checked_url(url))
    except CredentialsError:
        remedy = "set it again, or unset it"
        raise CredentialsError("ARKOR_TOKEN contains characters that no token has", remedy=remedy) from None


def stored_credentials(base_url: str) -> Credentials | None:
    """Return the stored credentials; raise `CredentialsError` if they are for another backend."""
    known = credentials_from_env(base_url) or read_credentials()
    return known and check_backend(known, base_url)


def _obtain(url: str, incidental: bool) -> Credentials:
    with credentials_lock():
        credentials = read_credentials()  # another process may have stored some
        if credentials is None:
            credentials = evolve(ensure_registered(url), incidental=incidental or None)
            write_credentials(credentials)
            logger.info("obtained an anonymous identity from %s, stored in %s", url, credentials_path())
    return credentials


def ensure_registered(url: str) -> AnonymousCredentials:
    """Return a new anonymous identity; raise `CredentialsError` if the backend issues none."""
    try:
        return request_anonymous_token(url)
    except CloudApiError as error:
        if error.status not in (401, 403):
            raise
        reason = "" if error.code == "token_required" else f" ({error.message})"
        raise CredentialsError(
            f"{url} requires a token{reason}",
            remedy=f"get one from its operator and sign in (arkor login --token --url {url}), "
            "or set ARKOR_CLOUD_API_URL and ARKOR_TOKEN",
        ) from error


def request_anonymous_token(base_url: str, kind: Literal["cli", "web"] = "cli") -> AnonymousCredentials:
    """Request a new anonymous identity from the backend; store nothing."""
    url = checked_url(base_url)
    response = HttpClient(Auth(url)).call("POST", "/v1/auth/anonymous", body={"kind": kind})
    org = response.get("personalOrg")
    slug = org.get("slug") if isinstance(org, dict) else None
    token, anonymous_id = response.get("token"), response.get("anonymousId")
    if not (isinstance(token, str) and isinstance(anonymous_id, str) and isinstance(slug, str) and token and slug):
        message = str(Problem(f"the response of {url} contains no anonymous identity", remedy=CHECK_ADDRESS))
        raise CloudApiError(200, "bad_answer", message, method="POST", path="/v1/auth/anonymous")
    return AnonymousCredentials(token, anonymous_id, url, slug)
