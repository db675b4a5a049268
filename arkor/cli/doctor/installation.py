"""Checks of `arkor doctor` on packages, home, sign-in, backend and network; all are read-only."""

from __future__ import annotations

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

from packaging.requirements import Requirement
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
from arkor.client.local_backend import REQUIRED_PACKAGES, missing_packages
from arkor.errors import ArkorError, CloudApiError, CredentialsError
from arkor.formatting import format_bytes
from arkor.protocol.diagnostics import OK, PROBLEM, WARNING, Diagnostic, ok, problem, warning
from arkor.settings import VERSION, cloud_api_url_from_env, token_from_env

#: Free bytes below which a run may not fit, and below which it can hardly start.
LOW_SPACE_BYTES, MIN_SPACE_BYTES = 2 * 2**30, 400 * 2**20

#: Seconds for a remote backend: to connect, and to respond.
TIMEOUT = (5.0, 5.0)

_OTHER_HOME = "set ARKOR_HOME to another folder"


def check_installation(needed: bool) -> Iterator[Diagnostic]:
    yield ok("Python", f"{'.'.join(map(str, sys.version_info[:3]))} in {sys.executable}")
    yield ok("arkor", f"{VERSION} in {Path(__file__).parents[2]}")
    missing = missing_packages()
    if missing and needed:
        yield problem("packages", f"not installed: {', '.join(missing)}", 'pip install "arkor[local]"')
    elif missing:
        yield ok("packages", f"not installed: {', '.join(missing)}; a remote backend does not need them")
    if present := [name for name in REQUIRED_PACKAGES if name not in missing]:
        yield ok("packages", ", ".join(f"{name} {_version(name) or 'of unknown version'}" for name in present))
    if outdated := list(_outdated()):
        yield problem("packages", f"too old: {', '.join(outdated)}", 'pip install --upgrade "arkor[local]"')


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _outdated() -> Iterator[str]:
    """Yield the installed packages that do not have the version that `arkor[local]` requires."""
    for line in (metadata.requires("arkor") or []) if _version("arkor") else []:
        requirement = Requirement(line)
        wanted = requirement.marker is None or requirement.marker.evaluate({"extra": "local"})
        installed = _version(requirement.name) if wanted else None
        if installed and not requirement.specifier.contains(installed, prereleases=True):
            yield f"{requirement.name} {installed} (needs {requirement.specifier})"


def check_home(home: Path) -> Iterator[Diagnostic]:
    try:
        found = home.stat()
    except FileNotFoundError:
        parent = _nearest_existing(home)
        if parent.is_dir() and os.access(parent, os.W_OK | os.X_OK):
            yield ok("home", f"{home} does not exist yet; it is created when needed")
        else:
            yield problem("home", f"{home} cannot be created in {parent}", "set ARKOR_HOME to a writable folder")
        return
    except OSError as error:
        yield problem("home", f"{home} cannot be used ({error.strerror})", _OTHER_HOME)
        return
    if not stat.S_ISDIR(found.st_mode):
        yield problem("home", f"{home} is not a folder", f"move it away, or {_OTHER_HOME}")
    elif sys.platform == "win32":  # has other permissions than these
        yield ok("home", str(home))
    elif not os.access(home, os.W_OK | os.X_OK) or os.statvfs(home).f_flag & os.ST_RDONLY:
        remedy = f"make it writable (chmod u+rwx {home}), or set ARKOR_HOME to a writable folder"
        yield problem("home", f"{home} is not writable", remedy)
    elif found.st_uid != os.getuid():
        yield warning("home", f"{home} belongs to another user (uid {found.st_uid})", _OTHER_HOME)
    elif found.st_mode & 0o077:
        sentence = f"{home} contains tokens and data, and other users of this machine can access it"
        yield warning("home", sentence, f"chmod 700 {home}")
    else:
        yield ok("home", str(home))


def _nearest_existing(path: Path) -> Path:
    """Return the path, or its lowest parent that exists."""
    return next((folder for folder in (path, *path.parents) if folder.exists()), Path("/"))


def check_space(home: Path) -> Iterator[Diagnostic]:
    """Check the free space of the disks of the home and of the Hugging Face cache."""
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or "~/.cache/huggingface", "hub"))
    disks: dict[int, tuple[Path, str]] = {}
    for path, variable in ((home, "ARKOR_HOME"), (cache.expanduser(), "HF_HOME")):
        disks.setdefault(_nearest_existing(path).stat().st_dev, (path, variable))
    for path, variable in disks.values():
        free = shutil.disk_usage(_nearest_existing(path)).free
        level = PROBLEM if free < MIN_SPACE_BYTES else WARNING if free < LOW_SPACE_BYTES else OK
        remedy = None if level == OK else f"free some space, or set {variable} to a folder on a larger disk"
        yield Diagnostic("space", level, f"{format_bytes(free)} free for {path}", remedy)


def check_sign_in() -> Iterator[Diagnostic]:
    path = credentials_path()
    if token_from_env() and not cloud_api_url_from_env():
        remedy = "set ARKOR_CLOUD_API_URL to the backend of the token"
        yield warning("sign-in", "ARKOR_TOKEN is set, but ARKOR_CLOUD_API_URL is not, so the token is not used", remedy)
    try:
        found = read_credentials()
    except CredentialsError as error:
        yield problem("sign-in", error.problem, error.remedy)
        return
    if not path.exists():
        yield ok("sign-in", "none; the backend of this machine does not need one")
        return
    if found is None:
        yield warning("sign-in", f"{path} is invalid and is ignored", "sign in again: arkor login")
    elif isinstance(found, TokenCredentials):
        yield ok("sign-in", f"with an operator's token at {url_of(found)}")
    elif isinstance(found, OAuthCredentials):
        expired = found.expires_at < time.time()
        yield ok("sign-in", f"at {url_of(found)}, {'expired; it is renewed when used' if expired else 'valid'}")
    else:
        yield ok("sign-in", f"anonymous at {url_of(found)}, organisation {found.org_slug}")
    if path.stat().st_mode & 0o077:
        yield warning("sign-in", f"other users of this machine can read {path}", f"chmod 600 {path}")


def check_backend_choice() -> tuple[list[Diagnostic], str | None]:
    """Return which backend is used and why, and its URL if it is a remote one."""
    try:
        chosen = choose_backend()
    except CredentialsError:
        return [], None  # reported by `check_sign_in`
    except ArkorError as error:
        remedy = "correct ARKOR_CLOUD_API_URL, or unset it"
        return [problem("backend", f"the address of the backend is invalid: {error}", remedy)], None
    if chosen is None:
        return [ok("backend", "this machine, the default without ARKOR_CLOUD_API_URL and without a sign-in")], None
    url, why = chosen
    return [ok("backend", f"{url}, because of {credentials_path() if why == 'credentials file' else why}")], url


def check_remote_backend(url: str) -> Iterator[Diagnostic]:
    credentials = credentials_from_env(url) or read_credentials()
    if credentials is not None and url_of(credentials) != url:
        sentence = f"ARKOR_CLOUD_API_URL is {url}, but the sign-in is for {url_of(credentials)}"
        yield problem("backend", sentence, f"unset ARKOR_CLOUD_API_URL, or sign in there: arkor login --url {url}")
        credentials = None
    try:
        health = HttpClient(Auth(url), retry_budget=0).call("GET", "/healthz", timeout=TIMEOUT)
        yield ok("backend", f"it responds (arkor {health.get('version', 'of unknown version')})")
        yield from _check_identity(url, credentials)
    except CloudApiError as error:
        level = OK if error.status in (401, 404) else PROBLEM
        yield Diagnostic("backend", level, f"it responds to a health check with status {error.status}")
    except ArkorError as error:
        remedy = "start it (`arkor serve` on its machine), or correct the address or the network"
        yield problem("backend", error.problem, remedy)


def _check_identity(url: str, credentials: Credentials | None) -> Iterator[Diagnostic]:
    if credentials is None or isinstance(credentials, OAuthCredentials):  # may need a refresh first
        return
    try:
        HttpClient(Auth(url, credentials.bearer), retry_budget=0).call("GET", "/v1/me", timeout=TIMEOUT)
    except CloudApiError as error:
        if error.status not in (401, 403):
            raise
        if isinstance(credentials, AnonymousCredentials):
            sentence = "it does not know the sign-in; its home may be a new one"
            yield problem("backend", sentence, "sign out (arkor logout); the next call creates a new identity")
        else:
            remedy = f"ask its operator for the current token, then: arkor login --token --url {url}"
            yield problem("backend", "it rejects the token", remedy)


def check_network(url: str | None) -> Iterator[Diagnostic]:
    """Check environment variables that misdirect calls; no proxy is used for a loopback address."""
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        if (path := os.environ.get(name)) and not Path(path).exists():
            yield problem("network", f"{name} is {path}, which does not exist", f"unset {name}, or correct it")
    if url is None or is_loopback_url(url):
        return
    if proxy := select_proxy(url, get_environ_proxies(url, no_proxy=None)):
        host = urlsplit(url).hostname or ""
        without_password = re.sub(r"//[^/@]*@", "//", proxy)
        sentence = f"calls to {host} use the proxy {without_password}"
        if "." in host:
            yield ok("network", sentence)
        else:  # a name of the local network, which a proxy rarely resolves
            yield warning("network", sentence, f"if the proxy cannot reach it: export NO_PROXY={host}")
