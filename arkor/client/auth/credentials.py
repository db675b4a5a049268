"""Credentials for a backend, and the file that keeps them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from attrs import field, frozen

from arkor.client.http.cancellation import sleep
from arkor.errors import BackendUnavailable, CredentialsError
from arkor.files import Lock, write_atomically
from arkor.protocol.codec import from_wire, to_wire
from arkor.settings import MANAGED_CLOUD_API_URL, arkor_home, cloud_api_url_from_env

#: Seconds to wait for another process that is obtaining or renewing credentials from a server.
LOCK_SECONDS = 45.0


@frozen
class AnonymousCredentials:
    """An identity that a backend issued without a login, with an organisation of its own.

    `incidental` marks one that a script obtained while `base_url` or `ARKOR_CLOUD_API_URL` chose
    the backend: it is used for that backend, but does not select it.
    """

    mode: ClassVar[str] = "anon"

    token: str = field(repr=False)
    anonymous_id: str
    arkor_cloud_api_url: str
    org_slug: str
    incidental: bool | None = None
    extra: Mapping[str, Any] = field(factory=dict, repr=False, eq=False)

    @property
    def bearer(self) -> str:
        """The token for `Authorization: Bearer`."""
        return self.token


@frozen
class OAuthCredentials:
    """The credentials of a person; `expires_at` is in unix seconds."""

    mode: ClassVar[str] = "oauth"

    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    expires_at: float
    auth0_domain: str
    audience: str
    client_id: str
    arkor_cloud_api_url: str | None = None
    extra: Mapping[str, Any] = field(factory=dict, repr=False, eq=False)

    @property
    def bearer(self) -> str:
        return self.access_token


@frozen
class TokenCredentials:
    """A token from the operator of a backend."""

    mode: ClassVar[str] = "token"

    token: str = field(repr=False)
    arkor_cloud_api_url: str
    extra: Mapping[str, Any] = field(factory=dict, repr=False, eq=False)

    @property
    def bearer(self) -> str:
        return self.token


Credentials = AnonymousCredentials | OAuthCredentials | TokenCredentials

_MODES: dict[str, type[Any]] = {cls.mode: cls for cls in (AnonymousCredentials, OAuthCredentials, TokenCredentials)}
_MODES["auth0"] = OAuthCredentials  # written by older TypeScript clients


def url_of(credentials: Credentials | None) -> str:
    """Return the backend that the credentials are for, by default the managed cloud."""
    return ((credentials and credentials.arkor_cloud_api_url) or MANAGED_CLOUD_API_URL).rstrip("/")


def default_cloud_api_url(credentials: Credentials | None = None) -> str:
    """Return `ARKOR_CLOUD_API_URL`, else the credentials' URL, else the managed cloud's."""
    return cloud_api_url_from_env() or url_of(credentials)


def is_incidental(credentials: Credentials) -> bool:
    """Return whether the credentials were obtained without a login or a command of the user."""
    return isinstance(credentials, AnonymousCredentials) and credentials.incidental is True


def check_backend(credentials: Credentials, url: str) -> Credentials:
    """Return the credentials; raise `CredentialsError` if they are for another backend."""
    if url_of(credentials) != url.rstrip("/"):
        remedy = f"to sign out: arkor logout (it removes {credentials_path()}); to keep both, set another ARKOR_HOME"
        raise CredentialsError(f"you are signed in to {url_of(credentials)}, not to {url}", remedy=remedy)
    return credentials


# The file


def credentials_path() -> Path:
    """Return the path of `credentials.json` in `ARKOR_HOME`."""
    return arkor_home() / "credentials.json"


def read_credentials() -> Credentials | None:
    """Return the stored credentials; None if missing or invalid. Raise `CredentialsError`."""
    path = credentials_path()
    try:
        data = json.loads(path.read_text("utf-8"))
        cls = _MODES[data["mode"]]
        credentials: Credentials = from_wire(cls, {key: item for key, item in data.items() if key != "mode"})
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, KeyError, RecursionError):
        return None
    except OSError as error:
        remedy = "fix its permissions, or move it away"
        raise CredentialsError(f"{path} cannot be read ({error.strerror})", remedy=remedy) from error
    return credentials if _is_valid(credentials) else None


def _is_valid(credentials: Credentials) -> bool:
    if isinstance(credentials, AnonymousCredentials):
        texts = [credentials.token, credentials.org_slug]
    elif isinstance(credentials, TokenCredentials):
        texts = [credentials.token, credentials.arkor_cloud_api_url]
    else:
        texts = [credentials.access_token, credentials.auth0_domain, credentials.client_id]
        expires_at: Any = credentials.expires_at
        if type(expires_at) not in (int, float) or abs(expires_at) >= 1e18 or math.isnan(expires_at):
            return False
        if not isinstance(credentials.refresh_token, str):
            return False
    return all(isinstance(t, str) and t for t in texts) and isinstance(credentials.arkor_cloud_api_url, str | None)


def write_credentials(credentials: Credentials) -> None:
    """Store the credentials atomically with mode 0600; raise `CredentialsError` if that fails."""
    path = credentials_path()
    data = {"mode": credentials.mode, **to_wire(credentials)}
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(path, json.dumps(data, ensure_ascii=False, indent=2) + "\n")
    except OSError as error:
        remedy = "free some disk space or fix its permissions, or set ARKOR_HOME"
        raise CredentialsError(f"{path} cannot be written ({error.strerror})", remedy=remedy) from error


def remove_credentials() -> bool:
    """Remove the stored credentials, return whether any existed; raise `CredentialsError`."""
    path = credentials_path()
    if not path.parent.is_dir():
        return False
    with credentials_lock():
        try:
            target = Path(os.path.realpath(path))
            path.unlink()
            target.unlink(missing_ok=True)  # the target of a symbolic link contains the token
        except FileNotFoundError:
            return False
        except OSError as error:
            problem = f"{path} cannot be removed ({error.strerror})"
            raise CredentialsError(problem, remedy="fix its permissions") from error
    return True


@contextmanager
def credentials_lock() -> Iterator[None]:
    """Exclude other processes and threads from changing the stored credentials.

    Does nothing where no lock can be made (a read-only home). Raise `BackendUnavailable` if it
    stays taken.
    """
    lock = Lock(credentials_path().with_name("credentials.lock"))
    try:
        lock.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        acquired = lock.acquire(LOCK_SECONDS, sleep=sleep)
    except OSError:
        yield
        return
    if not acquired:
        problem = f"another process has been changing the credentials for more than {LOCK_SECONDS:.0f} s"
        raise BackendUnavailable(problem, remedy="try again")
    try:
        yield
    finally:
        lock.release()
