"""The sign-in: what it consists of, the file that keeps it, and an anonymous one for those who have none.

Signing in as a person is in `browser_login.py`, renewing that in `oauth.py`; a backend of this machine needs no sign-in
(`client/local_backend.py`).
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, Literal

from attrs import evolve, field, frozen

from arkor.client.http.cancellation import sleep
from arkor.client.http.client import Auth, HttpClient, checked_token
from arkor.client.http.urls import checked_url
from arkor.errors import BackendUnavailable, CloudApiError, CredentialsError
from arkor.protocol.codec import from_wire, to_wire
from arkor.settings import MANAGED_CLOUD_API_URL, arkor_home, cloud_api_url_from_env, token_from_env

logger = logging.getLogger("arkor")

#: Seconds for another process to get or to renew the sign-in; it asks a server.
LOCK_SECONDS = 45.0


@frozen
class AnonymousCredentials:
    """An identity that a backend gave out to whoever asked, with an organisation of its own.

    `incidental` says that a script came by it on its way to a backend that was named otherwise; it then opens that
    backend, but leads nobody to it.
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
        """What goes out as `Authorization: Bearer`."""
        return self.token


@frozen
class OAuthCredentials:
    """A person's sign-in; `expires_at` is in unix seconds."""

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
        """What goes out as `Authorization: Bearer`."""
        return self.access_token


@frozen
class TokenCredentials:
    """A token that the operator of a backend hands to those who may use it."""

    mode: ClassVar[str] = "token"

    token: str = field(repr=False)
    arkor_cloud_api_url: str
    extra: Mapping[str, Any] = field(factory=dict, repr=False, eq=False)

    @property
    def bearer(self) -> str:
        """What goes out as `Authorization: Bearer`."""
        return self.token


Credentials = AnonymousCredentials | OAuthCredentials | TokenCredentials

_MODES: dict[str, type[Any]] = {cls.mode: cls for cls in (AnonymousCredentials, OAuthCredentials, TokenCredentials)}
_MODES["auth0"] = OAuthCredentials  # as older TypeScript clients wrote it


def credentials_path() -> Path:
    """`credentials.json` in `ARKOR_HOME`."""
    return arkor_home() / "credentials.json"


def read_credentials() -> Credentials | None:
    """The sign-in of this user; None when there is none, or when the file makes no sense.

    Raises `CredentialsError` for a file that is there and cannot be read.
    """
    path = credentials_path()
    try:
        text = path.read_text("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UnicodeDecodeError:
        return None
    except OSError as error:
        problem = f"{path} cannot be read ({error.strerror}); mend its permissions, or move it away"
        raise CredentialsError(problem) from error
    return _parse(text)


def _parse(text: str) -> Credentials | None:
    try:
        data = json.loads(text)
        cls = _MODES[data["mode"]]
        credentials: Credentials = from_wire(cls, {key: item for key, item in data.items() if key != "mode"})
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return credentials if _is_valid(credentials) else None


def _is_valid(credentials: Credentials) -> bool:
    if isinstance(credentials, AnonymousCredentials):
        texts = [credentials.token, credentials.org_slug]
    elif isinstance(credentials, TokenCredentials):
        texts = [credentials.token, credentials.arkor_cloud_api_url]
    else:
        texts = [credentials.access_token, credentials.auth0_domain, credentials.client_id]
        if not isinstance(credentials.refresh_token, str) or not _is_number(credentials.expires_at):
            return False
    return all(isinstance(w, str) and w for w in texts) and isinstance(credentials.arkor_cloud_api_url, str | None)


def _is_number(value: Any) -> bool:
    """Whether it is a number that can be reckoned with."""
    return type(value) in (int, float) and abs(value) < 1e18 and not math.isnan(value)


def write_credentials(credentials: Credentials) -> None:
    """Keep the sign-in, mode 0600, whole or not at all. Raises `CredentialsError` when it cannot be written."""
    path = credentials_path()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_json(path, {"mode": credentials.mode, **to_wire(credentials)})
    except OSError as error:
        problem = f"{path} cannot be written ({error.strerror}); make room or mend its permissions, or set ARKOR_HOME"
        raise CredentialsError(problem) from error


@contextmanager
def credentials_lock() -> Iterator[None]:
    """One process (and thread) at a time changes the sign-in of the file; the lock ends with its holder, however.

    Where no lock can be made (a home that is read-only), everybody is on their own. Raises `BackendUnavailable`
    when another process does not come to an end.
    """
    try:
        credentials_path().parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(credentials_path().with_name("credentials.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:
        yield
        return
    try:
        _wait_for_lock(lock)
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_UN)  # also for copies of it in processes that were forked meanwhile
        os.close(lock)


def _wait_for_lock(lock: int) -> None:
    deadline = time.monotonic() + LOCK_SECONDS
    while _try_lock(lock):
        if time.monotonic() > deadline:
            raise BackendUnavailable(
                f"another process has been changing the sign-in for more than {LOCK_SECONDS:.0f} s; try again"
            )
        sleep(0.01)


def _try_lock(lock: int) -> bool:
    """Take it, unless another one has it; a file system without locks leaves it to everybody."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    return False


def write_json(path: Path, data: Mapping[str, Any], mode: int = 0o600) -> None:
    """Write beside and rename, so that a reader sees the old file or the new one; links stay. Raises OSError."""
    path = Path(os.path.realpath(path))
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(json.dumps(data, ensure_ascii=False, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(mode)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def default_cloud_api_url(credentials: Credentials | None = None) -> str:
    """`ARKOR_CLOUD_API_URL`, else the URL that the credentials are for, else the managed cloud's."""
    return cloud_api_url_from_env() or url_of(credentials)


def url_of(credentials: Credentials | None) -> str:
    """The backend that the credentials are for; the managed cloud when they do not say."""
    return ((credentials and credentials.arkor_cloud_api_url) or MANAGED_CLOUD_API_URL).rstrip("/")


def request_anonymous_token(base_url: str, kind: Literal["cli", "web"] = "cli") -> AnonymousCredentials:
    """Ask the backend for a new anonymous identity; nothing is written.

    Raises `CloudApiError` or `BackendUnavailable`.
    """
    url = checked_url(base_url)
    answer = HttpClient(Auth(url)).call("POST", "/v1/auth/anonymous", body={"kind": kind})
    org = answer.get("personalOrg")
    token, anonymous_id, slug = (
        answer.get("token"),
        answer.get("anonymousId"),
        isinstance(org, dict) and org.get("slug"),
    )
    if not (isinstance(token, str) and isinstance(anonymous_id, str) and isinstance(slug, str) and token and slug):
        problem = f"{url} gave no anonymous identity in its answer; is this really the address of an Arkor backend?"
        raise CloudApiError(200, "bad_answer", problem, method="POST", path="/v1/auth/anonymous")
    return AnonymousCredentials(token, anonymous_id, url, slug)


def ensure_credentials(base_url: str | None = None, *, incidental: bool = False) -> Credentials:
    """The sign-in of this user for that backend; where there is none, an anonymous one, which is then kept.

    `ARKOR_TOKEN` goes first at the backend that `ARKOR_CLOUD_API_URL` names. Processes that come at once get the same
    one. Never overwrites a sign-in: raises `CredentialsError` when there is one for another backend, or when the
    backend takes nobody without a token. `incidental`: see `AnonymousCredentials`.
    """
    if named := credentials_from_env(base_url):
        return named
    found = read_credentials()
    url = checked_url(base_url or default_cloud_api_url(found))
    return check_backend(found or _bootstrap(url, incidental), url)


def credentials_from_env(base_url: str | None = None) -> TokenCredentials | None:
    """`ARKOR_TOKEN`, which is for the backend that `ARKOR_CLOUD_API_URL` names and for no other."""
    token, url = token_from_env(), cloud_api_url_from_env()
    if token is None or url is None or (base_url is not None and checked_url(base_url) != checked_url(url)):
        return None
    try:
        return TokenCredentials(checked_token(token) or "", checked_url(url))
    except CredentialsError:
        raise CredentialsError("ARKOR_TOKEN has characters that no token has; set it anew, or unset it") from None


def stored_credentials(base_url: str) -> Credentials | None:
    """The sign-in for that backend as far as there is one. Raises `CredentialsError` for one of another backend."""
    known = credentials_from_env(base_url) or read_credentials()
    return known and check_backend(known, base_url)


def _bootstrap(url: str, incidental: bool) -> Credentials:
    with credentials_lock():
        found = read_credentials()  # another process may have been faster
        if found is None:
            found = evolve(ensure_registered(url), incidental=incidental or None)
            write_credentials(found)
            logger.info("got an anonymous identity at %s; it is kept in %s", url, credentials_path())
    return found


def ensure_registered(url: str) -> AnonymousCredentials:
    """A new anonymous identity; raises `CredentialsError` where nobody gets one, with the way in."""
    try:
        return request_anonymous_token(url)
    except CloudApiError as error:
        if error.status not in (401, 403):
            raise
        why = "" if error.code == "token_required" else f" ({error.message.rstrip('. ')})"
        raise CredentialsError(
            f"{url} takes nobody without a token{why}; with the one of its operator, sign in "
            f"(arkor login --token --url {url}), or set ARKOR_CLOUD_API_URL and ARKOR_TOKEN"
        ) from error


def is_incidental(credentials: Credentials) -> bool:
    """Whether nobody asked for that sign-in."""
    return isinstance(credentials, AnonymousCredentials) and credentials.incidental is True


def check_backend(credentials: Credentials, url: str) -> Credentials:
    """The sign-in, if it is for that backend. Raises `CredentialsError`, which names the ways out."""
    if url_of(credentials) != url.rstrip("/"):
        raise CredentialsError(
            f"you are signed in to {url_of(credentials)}, but {url} was asked for; to end that sign-in: arkor logout "
            f"(it removes {credentials_path()}); to keep both, set another ARKOR_HOME"
        )
    return credentials


def remove_credentials() -> bool:
    """Remove the sign-in; False when there was no file. Raises `CredentialsError` when it cannot be removed."""
    path = credentials_path()
    if not path.parent.is_dir():
        return False
    with credentials_lock():
        try:
            target = Path(os.path.realpath(path))
            path.unlink()
            target.unlink(missing_ok=True)  # where the file was a link: the token lies at its end
        except FileNotFoundError:
            return False
        except OSError as error:
            raise CredentialsError(f"{path} cannot be removed ({error.strerror}); mend its permissions") from error
    return True
