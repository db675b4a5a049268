"""A file behind an HTTP(S) address → a file on disk, without being led where the person could not look themselves.

Every connection is checked after it is made and before anything is sent, at each redirect anew: one that leads to
this machine or into a private network is refused unless the operator of the backend allowed it. The token goes to the
origin that the person named and nowhere else.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any
from urllib.parse import urljoin, urlsplit

import requests
import tenacity
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from arkor.backend.data.file_readers import DataError
from arkor.settings import VERSION, ca_bundle_from_env

#: A file of more bytes than this is refused: 20 GiB.
MAX_DOWNLOAD_BYTES = 20 * 2**30

MAX_REDIRECTS = 5
ATTEMPTS = 4

#: Seconds to connect, and of silence while reading.
TIMEOUT = (10.0, 60.0)


def private_urls_allowed() -> bool:
    """Whether the operator of this backend lets data come from private addresses."""
    return os.environ.get("ARKOR_ALLOW_PRIVATE_URLS") == "1"


def download(
    url: str, target: IO[bytes], *, name: str, token: str | None, allow_private: bool, limit: int = MAX_DOWNLOAD_BYTES
) -> None:
    """Stream `url` into `target`; `name` is what a person calls it. Faults that may pass are tried again.

    Raises `DataError`; OSError when `target` cannot be written.
    """
    retry = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(_TransientError),
        stop=tenacity.stop_after_attempt(ATTEMPTS),
        wait=tenacity.wait_random_exponential(multiplier=0.5, max=10),
        reraise=True,
    )
    try:
        retry(_attempt, url, target, name=name, token=token, allow_private=allow_private, limit=limit)
    except _TransientError as fault:
        raise DataError(str(fault)) from None


class _TransientError(Exception):
    """A fault that may be gone in a moment; its text is the sentence for when it is not."""


def _attempt(url: str, target: IO[bytes], *, name: str, token: str | None, allow_private: bool, limit: int) -> None:
    target.seek(0)
    target.truncate()
    with _errors_as_sentences(url, name), requests.Session() as session:
        session.verify = (ca_bundle_from_env() or ("", True))[1]
        if not allow_private:
            for scheme in ("http://", "https://"):
                session.mount(scheme, _PublicAdapter())
        with _follow(session, url, name, token) as response:
            _check_status(response, name, token)
            _copy(response, target, name, limit)


@contextmanager
def _errors_as_sentences(url: str, name: str) -> Iterator[None]:
    try:
        yield
    except PrivateAddress as private:
        raise DataError(
            f"{name} leads to {private}, an address of this machine or of a private network. If that is meant, set "
            "ARKOR_ALLOW_PRIVATE_URLS=1 in the environment of the backend and start it again."
        ) from None
    except requests.exceptions.SSLError as error:
        host = urlsplit(url).hostname
        raise DataError(
            f"{name}: the connection to {host} "
            f"is not trusted ({_innermost_reason(error)}). If your company has its own "
            "authority, let SSL_CERT_FILE name its certificates in the environment of the backend."
        ) from None
    except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
        host = urlsplit(url).hostname
        raise _TransientError(
            f"{name} could not be fetched from {host} ({_innermost_reason(error)}). Is the address right?"
        ) from None
    except (requests.RequestException, ValueError) as error:
        raise DataError(f"{name} could not be fetched ({_innermost_reason(error)}).") from None
    except OSError as error:
        if "certificate bundle" not in str(error):  # what the disk has to say; requests has no error for the other
            raise
        raise DataError(f"{name} could not be fetched ({error}).") from None


def _innermost_reason(error: Exception) -> str:
    """The innermost reason, on one line; never the address, which may hold a secret."""
    while isinstance(error.__cause__ or error.__context__, Exception):
        error = error.__cause__ or error.__context__  # type: ignore[assignment]  # the line above says so
    words = re.sub(r"https?://\S+", "…", str(error)).split("\n")[0]
    return words[:160] or type(error).__name__


# Where it may lead


class PrivateAddress(Exception):
    """A connection led to this machine or into a private network; the text is the address."""


def _reject_private_peer(connected: socket.socket) -> socket.socket:
    peer = connected.getpeername()[0]
    address = ipaddress.ip_address(peer.partition("%")[0])
    address = getattr(address, "ipv4_mapped", None) or address
    if not address.is_global or address.is_multicast:
        connected.close()
        raise PrivateAddress(str(address))
    return connected


class _PublicHTTP(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        return _reject_private_peer(super()._new_conn())


class _PublicHTTPS(HTTPSConnection):
    def _new_conn(self) -> socket.socket:
        return _reject_private_peer(super()._new_conn())


class _PublicHTTPPool(HTTPConnectionPool):
    ConnectionCls = _PublicHTTP


class _PublicHTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _PublicHTTPS


class _PublicAdapter(HTTPAdapter):
    """Talks to public addresses alone. What a proxy of the environment does behind its own is its operator's."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _PublicHTTPPool, "https": _PublicHTTPSPool}


# What is asked, and what comes


class _BearerAuth(AuthBase):
    """An explicit auth object, without which requests would put a `.netrc` password in the token's place."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._token:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _follow(session: requests.Session, url: str, name: str, token: str | None) -> requests.Response:
    """The first answer that is no redirect."""
    location = url
    for _ in range(MAX_REDIRECTS + 1):
        auth = _BearerAuth(token if _origin(location) == _origin(url) else None)
        headers = {"User-Agent": f"arkor/{VERSION}"}
        response = session.get(
            location, auth=auth, headers=headers, stream=True, timeout=TIMEOUT, allow_redirects=False
        )
        if not response.is_redirect:
            return response
        response.close()
        location = urljoin(location, response.headers["Location"])
        if urlsplit(location).scheme not in ("http", "https"):
            raise DataError(f"{name} redirects to something that is no web address.")
    raise DataError(f"{name} redirects more than {MAX_REDIRECTS} times.")


def _check_status(response: requests.Response, name: str, token: str | None) -> None:
    status = response.status_code
    if status == 200:
        return
    if status in (408, 425, 429) or status >= 500:
        raise _TransientError(f"{name} could not be fetched: its server answers {status}. Try again later.")
    if status in (401, 403):
        remedy = "The token is not accepted there." if token else "Give the data set a token that may read it."
        raise DataError(f"{name} could not be fetched: its server answers {status}. {remedy}")
    raise DataError(f"{name} could not be fetched: its server answers {status}. Is the address right?")


def _copy(response: requests.Response, target: IO[bytes], name: str, limit: int) -> None:
    too_large = DataError(f"{name} is larger than {limit / 2**30:.3g} GiB, the most that is fetched for a run.")
    content_length = response.headers.get("Content-Length", "")
    if content_length.isdigit() and int(content_length) > limit:
        raise too_large
    received = 0
    for chunk in response.iter_content(2**20):
        received += len(chunk)
        if received > limit:
            raise too_large
        target.write(chunk)
    target.flush()
