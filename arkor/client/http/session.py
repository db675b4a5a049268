"""Sessions of requests: certificates, proxies, headers, redirects, and closing a connection."""

from __future__ import annotations

import socket
from contextlib import suppress
from http.cookiejar import DefaultCookiePolicy
from typing import Any
from urllib.parse import urljoin

import requests

from arkor.client.http.cancellation import current_scope
from arkor.client.http.errors import without_token
from arkor.client.http.urls import is_loopback_url, split_url, without_secrets
from arkor.errors import CloudApiError
from arkor.protocol.transport import GuardedAdapter
from arkor.settings import VERSION, ca_bundle_from_env


class Session(requests.Session):
    """A session with the environment's certificates, and no proxy for this machine."""

    def merge_environment_settings(self, url: Any, *arguments: Any) -> Any:
        settings = super().merge_environment_settings(url, *arguments)
        if settings["verify"] is True and (named := ca_bundle_from_env()):
            settings["verify"] = named[1]
        return {**settings, "proxies": {}} if is_loopback_url(url) else settings

    def rebuild_proxies(self, prepared_request: requests.PreparedRequest, proxies: Any) -> Any:
        is_local = is_loopback_url(prepared_request.url or "")
        return {} if is_local else super().rebuild_proxies(prepared_request, proxies)  # type: ignore[no-untyped-call]


class CredentialSafeSession(Session):
    """A session without cookies that follows no redirect to another origin or method."""

    def __init__(self) -> None:
        super().__init__()
        self.headers.update({"X-Arkor-Client": f"arkor/{VERSION}", "User-Agent": f"arkor/{VERSION}"})
        self.headers["Accept"] = "application/json"
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self.max_redirects = 5
        for scheme in ("http://", "https://"):
            self.mount(scheme, _cancellable_adapter())

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """Raise `CloudApiError` for a redirect to another origin: it must not get the token."""
        target = super().get_redirect_target(resp)
        if target is None:
            return None
        source, destination = split_url(resp.url), split_url(urljoin(resp.url, target))
        same_origin = source and destination and source[:2] == destination[:2]  # scheme, host and port
        if same_origin and (resp.request.method in ("GET", "HEAD") or resp.status_code in (307, 308)):
            return target
        resp.close()
        where = without_token(without_secrets(destination), resp.request) if destination else "an invalid address"
        message = f"the backend redirects this call to {where}; if that is the right address, use it instead"
        path = source.path if source else None
        raise CloudApiError(resp.status_code, "redirected", message, method=resp.request.method, path=path)

    def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        """Keep the header: the origin stays the same."""


def _cancellable_adapter() -> GuardedAdapter:
    """Return a requests adapter whose connections, also through proxies, are cancellable."""

    def register(sock: socket.socket, _: Any = None) -> None:
        if scope := current_scope():
            scope.register(sock)

    return GuardedAdapter(register, register)


def close_connection(response: requests.Response) -> None:
    """Interrupt a thread that reads the response, which `close()` would wait for; close it."""
    with suppress(RuntimeError, OSError, ValueError, AttributeError):  # already closed
        response.raw.shutdown()
    response.close()
