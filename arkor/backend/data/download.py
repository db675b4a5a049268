"""Download a file over HTTP(S), from public addresses only.

The address of every connection is checked before it is made, also after each redirect: unless the
operator allows it, an address of this machine or of a private network is rejected. The token is
sent to the origin of the data set's URL only.
"""

from __future__ import annotations

import ipaddress
import os
import random
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import urljoin, urlsplit

import requests
from tenacity import stop_after_attempt

from arkor.backend.data.faults import DataError
from arkor.errors import is_transient
from arkor.formatting import one_line
from arkor.protocol.retry import retrying
from arkor.protocol.transport import GuardedAdapter, HeaderAuth
from arkor.settings import VERSION, ca_bundle_from_env

#: The largest file that is downloaded: 20 GiB.
MAX_DOWNLOAD_BYTES = 20 * 2**30

MAX_REDIRECTS = 5
ATTEMPTS = 4

#: Seconds to connect, and between two reads.
TIMEOUT = (10.0, 60.0)


def private_urls_allowed() -> bool:
    """Return whether the operator allows data from private addresses."""
    return os.environ.get("ARKOR_ALLOW_PRIVATE_URLS") == "1"


def download(
    url: str, target: IO[bytes], *, name: str, token: str | None, allow_private: bool, limit: int = MAX_DOWNLOAD_BYTES
) -> None:
    """Stream `url`, called `name` in messages, into `target`. Raise `DataError` and OSError."""

    def attempt() -> None:
        target.seek(0)
        target.truncate()
        with _errors_as_data_errors(url, name), requests.Session() as session:
            session.verify = (ca_bundle_from_env() or ("", True))[1]
            if not allow_private:
                for scheme in ("http://", "https://"):
                    session.mount(scheme, GuardedAdapter(_reject_private, guard_proxies=False))
            with _follow(session, url, name, token) as response:
                _check_status(response, name, token)
                _copy(response, target, name, limit)

    retrying(
        lambda error: isinstance(error, _TransientError),
        lambda _, attempt: random.uniform(0.0, min(10.0, 0.5 * 2 ** (attempt - 1))),  # noqa: S311 - not a secret
        stop_after_attempt(ATTEMPTS),
    )(attempt)


class _TransientError(DataError):
    """An error that may be gone at the next attempt."""


@contextmanager
def _errors_as_data_errors(url: str, name: str) -> Iterator[None]:
    host = urlsplit(url).hostname
    try:
        yield
    except PrivateAddress as private:
        raise DataError(
            f"{name} leads to {private}, an address of this machine or of a private network. To allow it, set "
            "ARKOR_ALLOW_PRIVATE_URLS=1 in the environment of the backend and restart it."
        ) from None
    except requests.exceptions.SSLError as error:
        raise DataError(
            f"{name}: the certificate of {host} is not trusted ({_innermost_reason(error)}). If your company has its "
            "own authority, let SSL_CERT_FILE name its certificates in the environment of the backend."
        ) from None
    except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
        reason = _innermost_reason(error)
        raise _TransientError(f"{name} could not be fetched from {host} ({reason}). Is the address right?") from None
    except (requests.RequestException, ValueError) as error:
        raise DataError(f"{name} could not be fetched ({_innermost_reason(error)}).") from None
    except OSError as error:  # from the disk, or from requests for a missing file of certificates
        variable, bundle = ca_bundle_from_env() or ("", "")
        if not bundle or Path(bundle).exists():
            raise
        raise DataError(f"{name} could not be fetched: {variable} is {bundle}, which does not exist.") from error


def _innermost_reason(error: BaseException) -> str:
    """Return the original error on one line, without URLs, which may contain secrets."""
    while isinstance(cause := error.__cause__ or error.__context__, Exception):
        error = cause
    return one_line(re.sub(r"https?://\S+", "…", str(error)), 160) or type(error).__name__


# Connections


class PrivateAddress(Exception):
    """A connection leads to this machine or into a private network; `str()` is the address."""


def _reject_private(_: socket.socket, peer: Any) -> None:
    """Raise `PrivateAddress` before a socket connects; proxies of the environment enforce their own rules."""
    address = ipaddress.ip_address(peer[0].partition("%")[0])
    address = getattr(address, "ipv4_mapped", None) or address
    if not address.is_global or address.is_multicast:
        raise PrivateAddress(str(address))


# Requests and responses


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _follow(session: requests.Session, url: str, name: str, token: str | None) -> requests.Response:
    """Return the first response that is not a redirect."""
    location = url
    for _ in range(MAX_REDIRECTS + 1):
        auth = HeaderAuth(token if _origin(location) == _origin(url) else None)
        headers = {"User-Agent": f"arkor/{VERSION}"}
        response = session.get(
            location, auth=auth, headers=headers, stream=True, timeout=TIMEOUT, allow_redirects=False
        )
        if not response.is_redirect:
            return response
        response.close()
        location = urljoin(location, response.headers["Location"])
        if urlsplit(location).scheme not in ("http", "https"):
            raise DataError(f"{name} redirects to an address that does not begin with http:// or https://.")
    raise DataError(f"{name} redirects more than {MAX_REDIRECTS} times.")


def _check_status(response: requests.Response, name: str, token: str | None) -> None:
    status = response.status_code
    if status == 200:
        return
    problem = f"{name} could not be fetched: its server answers {status}."
    if is_transient(status):
        raise _TransientError(f"{problem} Try again later.")
    if status in (401, 403):
        remedy = "The token is not accepted there." if token else "Give the data set a token that may read it."
        raise DataError(f"{problem} {remedy}")
    raise DataError(f"{problem} Is the address right?")


def _copy(response: requests.Response, target: IO[bytes], name: str, limit: int) -> None:
    too_large = DataError(f"{name} is larger than {limit / 2**30:.3g} GiB, the limit for a download.")
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
