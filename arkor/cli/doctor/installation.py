"""What `arkor doctor` looks at by itself: Python, packages, home, sign-in, the way to the backend.

Nothing is started, made, fetched or renewed on the way. What only the backend's half knows is in
`backend/diagnostics.py`, how a finding is printed in `doctor.py`.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from requests.utils import get_environ_proxies, select_proxy

from arkor.client.auth.bootstrap import credentials_from_env
from arkor.client.auth.credentials import (
    AnonymousCredentials,
    Credentials,
    OAuthCredentials,
    TokenCredentials,
    credentials_path,
    read_credentials,
    url_of,
)
from arkor.client.connect import choose_backend
from arkor.client.http.auth import Auth
from arkor.client.http.client import HttpClient
from arkor.client.http.urls import is_loopback_url
from arkor.client.local_backend import REQUIRED_PACKAGES
from arkor.errors import ArkorError, CloudApiError, CredentialsError
from arkor.protocol.diagnostics import OK, PROBLEM, WARNING, Diagnostic
from arkor.settings import VERSION, cloud_api_url_from_env, token_from_env

#: Below how many free bytes something will soon not fit, and below how many a run can hardly begin.
LOW_SPACE_BYTES, MIN_SPACE_BYTES = 2 * 2**30, 400 * 2**20

#: Seconds to wait for a backend elsewhere: to connect, and for its answer.
TIMEOUT = (5.0, 5.0)


# The installation


def check_installation(needed: bool) -> Iterator[Diagnostic]:
    """Python, arkor, and the packages of a backend on this machine, where it is `needed`."""
    version = ".".join(map(str, sys.version_info[:3]))
    yield Diagnostic("Python", OK, f"{version} in {sys.executable}")
    yield Diagnostic("arkor", OK, f"{VERSION} in {Path(__file__).parents[2]}")
    if missing := missing_packages():
        level, end = (PROBLEM, "") if needed else (OK, "; the backend elsewhere does without")
        sentence = f"not installed: {', '.join(missing)}{end}"
        yield Diagnostic("packages", level, sentence, 'pip install "arkor[local]"' if needed else None)
    present = [name for name in REQUIRED_PACKAGES if name not in missing]
    if present:
        yield Diagnostic("packages", OK, ", ".join(f"{name} {_version(name)}" for name in present))
    if old := list(_outdated()):
        yield Diagnostic("packages", PROBLEM, f"too old: {', '.join(old)}", 'pip install --upgrade "arkor[local]"')


def missing_packages() -> list[str]:
    """What a backend on this machine cannot do without, and is not installed."""
    return [name for name in REQUIRED_PACKAGES if importlib.util.find_spec(name) is None]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "of unknown version"


def _outdated() -> Iterator[str]:
    """The packages of `arkor[local]` that are here in a version below the one it asks for."""
    try:
        requirements = metadata.requires("arkor") or []
    except metadata.PackageNotFoundError:
        return
    for line in requirements:
        found = re.match(r"([\w.-]+)>=([\d.]+).*extra == ['\"]local['\"]", line.replace(" >=", ">="))
        if (
            found
            and (installed := _version(found[1]))
            and installed[0].isdigit()
            and _numbers(installed) < _numbers(found[2])
        ):
            yield f"{found[1]} {installed} (needs {found[2]})"


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version.partition("+")[0])[:3]]


# The home


def check_home(home: Path) -> Iterator[Diagnostic]:
    """`ARKOR_HOME`: whose it is, who may look into it, whether it can be written."""
    try:
        found = home.stat()
    except FileNotFoundError:
        yield _check_missing_home(home)
        return
    except OSError as error:
        yield Diagnostic(
            "home", PROBLEM, f"{home} cannot be used ({error.strerror})", "set ARKOR_HOME to another folder"
        )
        return
    if not stat.S_ISDIR(found.st_mode):
        yield Diagnostic("home", PROBLEM, f"{home} is not a folder", "move it away, or set ARKOR_HOME to another one")
    elif not os.access(home, os.W_OK | os.X_OK) or os.statvfs(home).f_flag & os.ST_RDONLY:
        remedy = f"let it be written (chmod u+rwx {home}), or set ARKOR_HOME to a folder that can be"
        yield Diagnostic("home", PROBLEM, f"{home} cannot be written", remedy)
    elif found.st_uid != os.getuid():
        remedy = "set ARKOR_HOME to a folder of your own"
        yield Diagnostic("home", WARNING, f"{home} belongs to another user (uid {found.st_uid})", remedy)
    elif found.st_mode & 0o077:
        sentence = f"{home} can be looked into by other users of this machine; tokens and data lie in it"
        yield Diagnostic("home", WARNING, sentence, f"chmod 700 {home}")
    else:
        yield Diagnostic("home", OK, str(home))


def _check_missing_home(home: Path) -> Diagnostic:
    parent = _nearest_existing(home)
    if parent.is_dir() and os.access(parent, os.W_OK | os.X_OK):
        return Diagnostic("home", OK, f"{home} is not there yet; it is made when it is needed")
    return Diagnostic(
        "home", PROBLEM, f"{home} cannot be made in {parent}", "set ARKOR_HOME to a folder that can be written"
    )


def _nearest_existing(path: Path) -> Path:
    """The path, or the lowest one above it that is there."""
    return next((place for place in (path, *path.parents) if place.exists()), Path("/"))


def check_space(home: Path) -> Iterator[Diagnostic]:
    """The disks of the home and of the Hugging Face cache, once if they are the same."""
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or "~/.cache/huggingface", "hub"))
    disks: dict[int, tuple[Path, str]] = {}
    for path, variable in ((home, "ARKOR_HOME"), (cache.expanduser(), "HF_HOME")):
        disks.setdefault(_nearest_existing(path).stat().st_dev, (path, variable))
    for path, variable in disks.values():
        free = shutil.disk_usage(_nearest_existing(path)).free
        sentence = f"{free / 2**30:.1f} GiB free for {path}"
        level = PROBLEM if free < MIN_SPACE_BYTES else WARNING if free < LOW_SPACE_BYTES else OK
        remedy = None if level == OK else f"make room, or set {variable} to a folder on a larger disk"
        yield Diagnostic("space", level, sentence, remedy)


# The sign-in and the way


def check_sign_in() -> Iterator[Diagnostic]:
    """The credentials file; the token in it is never shown."""
    path = credentials_path()
    if token_from_env() and not cloud_api_url_from_env():
        remedy = "set ARKOR_CLOUD_API_URL to the backend that it is for"
        yield Diagnostic("sign-in", WARNING, "ARKOR_TOKEN is set, and goes nowhere", remedy)
    try:
        found = read_credentials()
    except CredentialsError as error:
        yield Diagnostic("sign-in", PROBLEM, *_split_remedy(error))
        return
    if not path.exists():
        yield Diagnostic("sign-in", OK, "none, and none is needed for the backend of this machine")
        return
    if found is None:
        sentence = f"{path} makes no sense, and counts as not signed in"
        yield Diagnostic("sign-in", WARNING, sentence, "sign in again: arkor login")
    elif isinstance(found, TokenCredentials):
        yield Diagnostic("sign-in", OK, f"with a token of its operator at {url_of(found)}")
    elif isinstance(found, OAuthCredentials):
        ends = "has ended; it is renewed when it is used" if found.expires_at < time.time() else "is valid"
        yield Diagnostic("sign-in", OK, f"at {url_of(found)}; it {ends}")
    else:
        yield Diagnostic("sign-in", OK, f"an anonymous one at {url_of(found)}, organisation {found.org_slug}")
    if path.stat().st_mode & 0o077:
        yield Diagnostic("sign-in", WARNING, f"{path} can be read by other users of this machine", f"chmod 600 {path}")


def check_backend_choice() -> tuple[list[Diagnostic], str | None]:
    """Which backend is used and why, and its URL unless it is the one of this machine."""
    try:
        chosen = choose_backend()
    except CredentialsError:
        return [], None  # told of with the sign-in
    except ArkorError as error:
        remedy = "mend ARKOR_CLOUD_API_URL, or unset it"
        return [Diagnostic("backend", PROBLEM, f"the address of the backend makes no sense: {error}", remedy)], None
    if chosen is None:
        why = "neither ARKOR_CLOUD_API_URL nor a sign-in names another"
        return [Diagnostic("backend", OK, f"the one of this machine is used: {why}")], None
    url, why = chosen
    return [Diagnostic("backend", OK, f"{url} is used, because of {_reason_note(why)}")], url


def _reason_note(why: str) -> str:
    return str(credentials_path()) if why == "credentials file" else why


def check_remote_backend(url: str) -> Iterator[Diagnostic]:
    """Whether a backend elsewhere answers, and knows us."""
    credentials = credentials_from_env(url) or read_credentials()
    if credentials is not None and url_of(credentials) != url:
        sentence = f"ARKOR_CLOUD_API_URL names {url}, but the sign-in is for {url_of(credentials)}"
        remedy = f"unset ARKOR_CLOUD_API_URL, or sign in there: arkor login --url {url}"
        yield Diagnostic("backend", PROBLEM, sentence, remedy)
        credentials = None
    try:
        health = HttpClient(Auth(url), retry_budget=0).call("GET", "/healthz", timeout=TIMEOUT)
        yield Diagnostic("backend", OK, f"it answers (arkor {health.get('version', 'of unknown version')})")
        yield from _check_identity(url, credentials)
    except CloudApiError as error:
        level = OK if error.status in (401, 404) else PROBLEM
        yield Diagnostic("backend", level, f"it answers with status {error.status} when asked how it is")
    except ArkorError as error:
        yield Diagnostic(
            "backend", PROBLEM, str(error), "start it (`arkor serve` there), or mend the address or the network"
        )


def _check_identity(url: str, credentials: Credentials | None) -> Iterator[Diagnostic]:
    if credentials is None or isinstance(credentials, OAuthCredentials):  # which would have to be renewed first
        return
    try:
        HttpClient(Auth(url, credentials.bearer), retry_budget=0).call("GET", "/v1/me", timeout=TIMEOUT)
    except CloudApiError as error:
        if error.status not in (401, 403):
            raise
        if isinstance(credentials, AnonymousCredentials):
            sentence = "it does not know the sign-in (its home may be a new one)"
            yield Diagnostic("backend", PROBLEM, sentence, "end it: arkor logout; the next call gets a new one")
        else:
            remedy = f"ask its operator for the one that counts now, then: arkor login --token --url {url}"
            yield Diagnostic("backend", PROBLEM, "it refuses the token", remedy)


# The network


def check_network(url: str | None) -> Iterator[Diagnostic]:
    """Variables of the environment that lead calls astray; a backend on loopback is never called through a proxy."""
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        if (path := os.environ.get(name)) and not Path(path).exists():
            yield Diagnostic(
                "network", PROBLEM, f"{name} names {path}, which does not exist", f"unset {name}, or mend it"
            )
    if url is None or is_loopback_url(url):
        return
    proxy = select_proxy(url, get_environ_proxies(url, no_proxy=None))
    if proxy:
        host = urlsplit(url).hostname
        sentence = f"calls to {host} go through the proxy {_without_password(proxy)}"
        level = WARNING if "." not in (host or "") else OK  # a name of this network, which a proxy seldom knows
        remedy = f"if it cannot be reached that way: export NO_PROXY={host}"
        yield Diagnostic("network", level, sentence, remedy if level == WARNING else None)


def _without_password(proxy: str) -> str:
    return re.sub(r"//[^/@]*@", "//", proxy)


def _split_remedy(error: Exception) -> tuple[str, str | None]:
    """`"what is wrong; what to do"` → both."""
    sentence, _, remedy = str(error).partition("; ")
    return sentence, remedy or None
