"""Validate URLs; detect loopback addresses."""

from __future__ import annotations

from typing import Any
from urllib.parse import SplitResult, urlsplit

from arkor.errors import InvalidConfig
from arkor.protocol.validation import is_loopback


def checked_url(base_url: str) -> str:
    """Return the URL without a trailing slash; raise `InvalidConfig` unless it is HTTP(S)."""
    parts = split_url(base_url)
    if parts is None or parts.scheme not in ("http", "https") or not _is_requestable(base_url):
        raise InvalidConfig("base_url", f"must be a URL like https://api.arkor.ai, not {base_url!r}")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InvalidConfig("base_url", "must have no user, password, query or fragment; a token goes into credentials")
    return base_url.rstrip("/")


def _is_requestable(url: str) -> bool:
    """Return whether requests accepts the host and the path."""
    import requests  # noqa: PLC0415 - takes longer to import than a script that only defines a run

    try:
        requests.models.PreparedRequest().prepare_url(url, None)
    except (requests.RequestException, UnicodeError):
        return False
    return url.isprintable() and " " not in url and bool(urlsplit(url).hostname)


def split_url(url: Any) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises ValueError for an invalid one
    except (ValueError, TypeError, AttributeError):
        return None
    return parts if isinstance(url, str) else None


def without_secrets(parts: SplitResult) -> str:
    """Return the URL without user, password and query, which may be secret."""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def is_loopback_url(url: str) -> bool:
    """Return whether the URL leads to this machine, where no proxy is used."""
    return is_loopback(urlsplit(url).hostname or "")
