"""The backend of this machine: found, or started, or replaced.

One process per user and `ARKOR_HOME`. Here is only what happens between processes (files, locks, signals); what the
backend does is in `arkor.backend`, which is never imported from here.
"""

from __future__ import annotations

import fcntl
import http.client
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from attrs import field, frozen

from arkor.client.auth.credentials import AnonymousCredentials
from arkor.client.http.client import Auth
from arkor.errors import BackendUnavailable
from arkor.protocol.codec import from_wire
from arkor.settings import PROTOCOL, VERSION, arkor_home

#: Seconds for a new backend to answer, for another process to finish starting one, for an old one to leave.
START_SECONDS = 30.0
LOCK_SECONDS = 60.0
SHUTDOWN_SECONDS = 10.0
#: Seconds for one answer to the question whether it is well, each time it is asked; the machine may be busy training.
HEALTH_SECONDS = (2.0, 5.0, 10.0)

EXIT_ALREADY_SERVING = 3  # the server's exit code when the home has one already
#: What a backend on this machine cannot do without.
REQUIRED_PACKAGES = ("starlette", "uvicorn", "sqlalchemy", "torch", "transformers", "peft", "trl")

#: The servers that this process has started; kept so that one that has left can be collected.
_started: list[subprocess.Popen[bytes]] = []


@frozen
class BackendInfo:
    """What `backend.json` says: where the backend listens, the owner's token, its process."""

    url: str
    token: str = field(repr=False)
    pid: int
    extra: dict[str, Any] = field(factory=dict, repr=False)


@frozen
class Health:
    """What `GET /healthz` says; `active_runs` are those that are queued or running."""

    version: str
    protocol: int
    active_runs: int
    extra: dict[str, Any] = field(factory=dict, repr=False)


class LocalBackendAuth(Auth):
    """The way to the backend of this machine; should it have gone or moved, the way to the next one."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self.credentials = find_or_start(home)
        super().__init__(self.credentials.arkor_cloud_api_url, self.credentials.token, source="embedded")

    def refresh(self) -> bool:
        """Raises `BackendUnavailable` when there is none and none can be started."""
        before = self.credentials
        self.credentials = find_or_start(self._home)
        self.base_url, self.token = self.credentials.arkor_cloud_api_url, self.credentials.token
        return self.credentials != before


def find_or_start(home: Path | None = None) -> AnonymousCredentials:
    """The sign-in of the owner at the backend of this machine, which is started if need be.

    Raises `BackendUnavailable`, whose sentence says what is in the way.
    """
    home = home or arkor_home()
    found = _find_running(home)
    if found is None or not is_compatible(*found):
        found = _start(home)
    info, _ = found
    return AnonymousCredentials(info.token, "local", info.url, "local")


# Looking


def _find_running(home: Path, ignored: BackendInfo | None = None) -> tuple[BackendInfo, Health] | None:
    """The backend that answers, if there is one. Raises `BackendUnavailable` for one that is there and mute."""
    info = read_backend_info(home)
    if info is None or info == ignored:
        return None
    for seconds in HEALTH_SECONDS:
        try:
            health = fetch_health(info, seconds)
        except TimeoutError:  # noqa: PERF203 - three rounds at most
            if not is_alive(info.pid):
                return None
        else:
            return (info, health) if health else None
    raise BackendUnavailable(
        f"the backend of this machine (process {info.pid}) does not answer; the machine may be overloaded. "
        f"Try again, or end it and start over: kill {info.pid}"
    )


def read_backend_info(home: Path) -> BackendInfo | None:
    """What `backend.json` says, if it makes sense. Raises `BackendUnavailable` for one that cannot be read."""
    with _home_errors_as_sentences(home):
        try:
            info = from_wire(BackendInfo, json.loads((home / "backend.json").read_bytes()))
        except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, AttributeError):
            return None
    is_valid = isinstance(info.url, str) and isinstance(info.token, str) and type(info.pid) is int
    return info if is_valid and info.pid > 1 else None


def fetch_health(info: BackendInfo, seconds: float) -> Health | None:
    """None when nobody listens there, or somebody who does not know our token. Raises TimeoutError."""
    try:
        address = urlsplit(info.url)
        with closing(http.client.HTTPConnection(address.hostname or "", address.port, timeout=seconds)) as connection:
            health = from_wire(Health, json.loads(_get(connection, "/healthz", {})))
            _get(connection, "/v1/me", {"Authorization": f"Bearer {info.token}"})
    except TimeoutError:
        raise
    except (OSError, http.client.HTTPException, ValueError, TypeError, AttributeError):
        return None
    return health if type(health.protocol) is int and type(health.active_runs) is int else None


def _get(connection: http.client.HTTPConnection, path: str, headers: dict[str, str]) -> bytes:
    """The body of a 200; raises ValueError for another status."""
    connection.request("GET", path, headers={"X-Arkor-Client": f"arkor/{VERSION}", **headers})
    response = connection.getresponse()
    body = response.read(64 * 1024)
    if response.status != 200:
        raise ValueError(f"status {response.status}")
    return body


def is_alive(pid: int) -> bool:
    """Whether there is a process of that id, whosever it is."""
    _started[:] = [process for process in _started if process.poll() is None]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def is_compatible(info: BackendInfo, health: Health) -> bool:
    """Whether that backend is to be used; False when it is to be replaced.

    Raises `BackendUnavailable` when it can be neither. An older one that understands us is left to finish its runs.
    """
    if health.protocol > PROTOCOL:
        raise BackendUnavailable(
            f"the backend of this machine (arkor {health.version}) is newer than this arkor ({VERSION}); "
            "upgrade this one: pip install --upgrade arkor"
        )
    understands = health.protocol == PROTOCOL
    if understands and (health.active_runs or _release(health.version) >= _release(VERSION)):
        return True
    if health.active_runs:
        raise BackendUnavailable(
            f"the backend of this machine (arkor {health.version}, process {info.pid}) is older than this arkor "
            f"({VERSION}) and has {health.active_runs} run(s) in progress; wait for them, or cancel them with the "
            "arkor that started them (`arkor jobs`, `arkor cancel`), or set ARKOR_HOME to another folder"
        )
    return False


def _release(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", str(version))[:3]]


# Starting


def _start(home: Path) -> tuple[BackendInfo, Health]:
    _check_packages()
    with _home_errors_as_sentences(home):
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _start_lock(home):
        stale = read_backend_info(home)
        found = _find_running(home)  # another process may have been faster
        if found is not None and not is_compatible(*found):
            _request_shutdown(home, found[0])
            found = None
        return found or _launch(home, stale)


def _check_packages() -> None:
    missing = [name for name in REQUIRED_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise BackendUnavailable(
            f"training on this machine needs packages that are not installed ({', '.join(missing)}): "
            'pip install "arkor[local]"; or name another backend with ARKOR_CLOUD_API_URL'
        )


@contextmanager
def _home_errors_as_sentences(home: Path) -> Iterator[None]:
    """An OSError in here is the home's fault."""
    try:
        yield
    except OSError as error:
        raise BackendUnavailable(
            f"{error.filename or home} cannot be used ({error.strerror or error}); make room or mend its permissions, "
            "or set ARKOR_HOME to a folder that can be written"
        ) from error


@contextmanager
def _start_lock(home: Path) -> Iterator[None]:
    """One process at a time decides whether to start; the lock ends with its holder, however that ends."""
    with _home_errors_as_sentences(home):
        lock = open(home / "start.lock", "w", opener=_private)  # noqa: SIM115 - closed below, outside of this net
    with lock:
        with _home_errors_as_sentences(home):
            _wait_for_lock(lock, home)
        try:
            yield
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)  # also for copies of it in processes that were forked meanwhile


def _wait_for_lock(lock: IO[str], home: Path) -> None:
    deadline = time.monotonic() + LOCK_SECONDS
    while time.monotonic() < deadline:
        with suppress(BlockingIOError):
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(0.02)
    raise BackendUnavailable(
        f"another process has been starting the backend for more than {LOCK_SECONDS:.0f} s (it holds "
        f"{home / 'start.lock'}); try again, or end that process"
    )


def _request_shutdown(home: Path, info: BackendInfo) -> None:
    try:
        os.kill(info.pid, signal.SIGTERM)
    except ProcessLookupError:
        return
    except PermissionError:
        raise BackendUnavailable(f"the older backend in {home} (process {info.pid}) is another user's") from None
    deadline = time.monotonic() + SHUTDOWN_SECONDS
    while is_alive(info.pid):
        if time.monotonic() > deadline:
            raise BackendUnavailable(
                f"the older backend of this machine (process {info.pid}) was asked to leave and did not; "
                f"end it: kill -9 {info.pid}"
            )
        time.sleep(0.01)


def _launch(home: Path, stale: BackendInfo | None) -> tuple[BackendInfo, Health]:
    """Start a server, and wait until one answers: it, or one that was faster."""
    log = home / "backend.log"
    deadline = time.monotonic() + START_SECONDS
    process, read_from = _spawn(home, log)
    while time.monotonic() < deadline:
        if found := _find_running(home, ignored=stale):
            return found
        exit_code = process.poll()
        if exit_code == EXIT_ALREADY_SERVING:  # one that is just coming, or just leaving
            time.sleep(0.1)
            stale = None
            process, read_from = _spawn(home, log)
        elif exit_code is not None:
            raise BackendUnavailable(f"the backend of this machine could not start: {_log_tail(log, read_from)}")
        time.sleep(0.01)
    process.terminate()
    raise BackendUnavailable(
        f"the backend of this machine did not answer within {START_SECONDS:.0f} s: {_log_tail(log, read_from)}"
    )


def _spawn(home: Path, log: Path) -> tuple[subprocess.Popen[bytes], int]:
    """A server that outlives us, and the place in the log where its words begin."""
    if not sys.executable:
        raise BackendUnavailable("this Python does not know its own executable; start `arkor serve` yourself")
    command = [sys.executable, "-m", "arkor.backend", "--home", str(home)]
    with _home_errors_as_sentences(home), open(log, "ab", opener=_private) as output:
        process = subprocess.Popen(  # noqa: S603 - our own module, no shell
            command,
            cwd=home,
            env=server_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        _started.append(process)
        return process, output.tell()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def server_environment() -> dict[str, str]:
    """Ours, with the folder that this package was imported from where Python would not look by itself."""
    folder = str(Path(__file__).resolve().parents[2])
    environment = dict(os.environ)
    if folder not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))
    return environment


def _log_tail(log: Path, read_from: int) -> str:
    """The last line of what the server said, and where the rest is."""
    with log.open("rb") as file:
        file.seek(read_from)
        lines = file.read()[-8192:].decode("utf-8", "replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    return f"{last[:500]} (more in {log})"
