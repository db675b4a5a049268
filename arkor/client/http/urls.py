"""Addresses of backends and of the servers beside them: whether one is any, and whether it leads to this machine."""

from __future__ import annotations

import ipaddress
from typing import Any
from urllib.parse import SplitResult, urlsplit

import requests

from arkor.errors import InvalidConfig


def checked_url(base_url: str) -> str:
    """The URL without its trailing slash. Raises `InvalidConfig` for what is no http(s) URL of a host."""
    parts = split_address(base_url)
    if parts is None or parts.scheme not in ("http", "https") or not _can_be_called(base_url):
        raise InvalidConfig("base_url", f"must be a URL like https://api.arkor.ai, not {base_url!r}")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InvalidConfig("base_url", "must have no user, password, query or fragment; a token goes into credentials")
    return base_url.rstrip("/")


def _can_be_called(url: str) -> bool:
    """Whether what comes behind the scheme is a host that a request can go to."""
    try:
        requests.models.PreparedRequest().prepare_url(url, None)
    except (requests.RequestException, UnicodeError):
        return False
    return url.isprintable() and " " not in url and bool(urlsplit(url).hostname)


def split_address(url: Any) -> SplitResult | None:
    """The parts of a URL; None for what is none."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises for one that is no number
    except (ValueError, TypeError, AttributeError):
        return None
    return parts if isinstance(url, str) else None


def without_secrets(parts: SplitResult) -> str:
    """The address without what may be secret in it: user, password, query."""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def is_loopback(base_url: str) -> bool:
    """Whether the URL leads to this machine itself, where no proxy belongs."""
    host = urlsplit(base_url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
