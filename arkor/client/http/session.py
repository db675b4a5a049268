"""Sessions of requests as we want them: whom to trust, which way to go, and who we are at each step of it."""

from __future__ import annotations

from collections.abc import Mapping
from http.cookiejar import DefaultCookiePolicy
from typing import Any
from urllib.parse import urljoin

import requests
from requests.auth import AuthBase

from arkor.client.http.cancellation import CancellableAdapter
from arkor.client.http.errors import without_token
from arkor.client.http.urls import is_loopback, split_address, without_secrets
from arkor.errors import CloudApiError
from arkor.settings import VERSION, ca_bundle_from_env


class HeaderAuth(AuthBase):
    """Sets the token's header and those that requests would refuse (an id may begin with a blank).

    Being there as `auth=`, it also keeps requests from putting a password of `.netrc` in the token's place.
    """

    def __init__(self, token: str | None, headers: Mapping[str, bytes]) -> None:
        self._headers = dict(headers)
        if token:
            self._headers["Authorization"] = b"Bearer " + token.encode()

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers.update(self._headers)  # type: ignore[arg-type] # bytes are sent as they are
        return request


class Session(requests.Session):
    """A session that leaves out proxies on the way to this machine itself; it trusts whom the environment names."""

    def merge_environment_settings(self, url: Any, *arguments: Any) -> Any:
        settings = super().merge_environment_settings(url, *arguments)
        if settings["verify"] is True and (named := ca_bundle_from_env()):
            settings["verify"] = named[1]
        return {**settings, "proxies": {}} if is_loopback(url) else settings

    def rebuild_proxies(self, prepared_request: requests.PreparedRequest, proxies: Any) -> Any:
        is_local = is_loopback(prepared_request.url or "")
        return {} if is_local else super().rebuild_proxies(prepared_request, proxies)  # type: ignore[no-untyped-call]


class CredentialSafeSession(Session):
    """One that keeps no cookies and follows a redirect only where the request stays what it was."""

    def __init__(self) -> None:
        super().__init__()
        self.headers.update({"X-Arkor-Client": f"arkor/{VERSION}", "User-Agent": f"arkor/{VERSION}"})
        self.headers["Accept"] = "application/json"
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self.max_redirects = 5
        for scheme in ("http://", "https://"):
            self.mount(scheme, CancellableAdapter())

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """Raises `CloudApiError` for a redirect to another origin: the token is meant for this one alone."""
        target = super().get_redirect_target(resp)
        if target is None:
            return None
        current, target_parts = split_address(resp.url), split_address(urljoin(resp.url, target))
        same_origin = (
            current and target_parts and (current.scheme, current.netloc) == (target_parts.scheme, target_parts.netloc)
        )
        if same_origin and (resp.request.method in ("GET", "HEAD") or resp.status_code in (307, 308)):
            return target
        resp.close()
        where = (
            without_token(without_secrets(target_parts), resp.request)
            if target_parts
            else "an address that makes no sense"
        )
        sentence = f"the backend redirects this call to {where}; if that is the right one, give its address instead"
        path = current.path if current else None
        raise CloudApiError(resp.status_code, "redirected", sentence, method=resp.request.method, path=path)

    def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        """Nothing: the origin is the same, and so is the header."""
