"""Find, start or replace the backend of this machine: one process per user and `ARKOR_HOME`.

Only files, locks, signals and health requests are used here; `arkor.backend` is never imported.
"""

from __future__ import annotations

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
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from attrs import field, frozen

from arkor.client.auth.credentials import AnonymousCredentials
from arkor.client.http.auth import Auth
from arkor.errors import BackendUnavailable
from arkor.files import Lock
from arkor.protocol.codec import from_wire
from arkor.settings import PROTOCOL, VERSION, arkor_home

#: Seconds to wait for a new backend, for the start lock, and for an old backend to exit.
START_SECONDS = 30.0
LOCK_SECONDS = 60.0
SHUTDOWN_SECONDS = 10.0
#: The timeouts of successive health requests, in seconds; the machine may be busy training.
HEALTH_SECONDS = (2.0, 5.0, 10.0)

EXIT_ALREADY_SERVING = 3  # the exit code of a server whose home is already being served
#: Packages that a backend on this machine needs.
REQUIRED_PACKAGES = ("starlette", "uvicorn", "sqlalchemy", "torch", "transformers", "peft", "trl")

#: The servers that this process has started, kept so that their exit codes are collected.
_started: list[subprocess.Popen[bytes]] = []


@frozen
class BackendInfo:
    """The contents of `backend.json`: the backend's URL, the owner's token, the process id."""

    url: str
    token: str = field(repr=False)
    pid: int
    extra: dict[str, Any] = field(factory=dict, repr=False)


@frozen
class Health:
    """The response of `GET /healthz`; `active_runs` counts queued and running runs."""

    version: str
    protocol: int
    active_runs: int
    extra: dict[str, Any] = field(factory=dict, repr=False)


class LocalBackendAuth(Auth):
    """An `Auth` for the backend of this machine, which is started again if it has ended."""

    honours_idempotency_keys = True

    def __init__(self, home: Path) -> None:
        self._home = home
        self.credentials = find_or_start(home)
        super().__init__(self.credentials.arkor_cloud_api_url, self.credentials.token, source="embedded")

    def refresh(self) -> bool:
        before = self.credentials
        self.credentials = find_or_start(self._home)
        self.base_url, self.token = self.credentials.arkor_cloud_api_url, self.credentials.token
        return self.credentials != before


def find_or_start(home: Path | None = None) -> AnonymousCredentials:
    """Return the owner's credentials for this machine's backend, starting it if necessary."""
    require_posix("training on this machine")
    home = home or arkor_home()
    running = _find_running(home)
    if running is None or not is_compatible(*running):
        running = _start(home)
    info, _ = running
    return AnonymousCredentials(info.token, "local", info.url, "local")


def require_posix(activity: str) -> None:
    """Raise `BackendUnavailable` on Windows, where the client works with a remote backend only."""
    if sys.platform == "win32":
        raise BackendUnavailable(
            f"{activity} needs Linux or macOS",
            remedy="install and use arkor inside WSL, or set ARKOR_CLOUD_API_URL to use a backend elsewhere",
        )


# Finding


def _find_running(home: Path, ignored: BackendInfo | None = None) -> tuple[BackendInfo, Health] | None:
    """Return the running backend; raise `BackendUnavailable` if it does not answer."""
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
        f"the backend of this machine (process {info.pid}) does not answer; the machine may be overloaded",
        remedy=f"try again, or end it and start over: kill {info.pid}",
    )


def read_backend_info(home: Path) -> BackendInfo | None:
    """Return a valid `backend.json`, else None; raise `BackendUnavailable` if unreadable."""
    with _home_errors(home):
        try:
            info = from_wire(BackendInfo, json.loads((home / "backend.json").read_bytes()))
        except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, AttributeError):
            return None
    is_valid = isinstance(info.url, str) and isinstance(info.token, str) and type(info.pid) is int
    return info if is_valid and info.pid > 1 else None


def fetch_health(info: BackendInfo, seconds: float) -> Health | None:
    """Return the backend's health, None if it is not ours or not there; raise TimeoutError."""
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
    connection.request("GET", path, headers={"X-Arkor-Client": f"arkor/{VERSION}", **headers})
    response = connection.getresponse()
    body = response.read(64 * 1024)
    if response.status != 200:
        raise ValueError(f"status {response.status}")
    return body


def is_alive(pid: int) -> bool:
    """Return whether a process with that id exists, of any user."""
    _started[:] = [process for process in _started if process.poll() is None]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def is_compatible(info: BackendInfo, health: Health) -> bool:
    """Return whether to use a backend or to replace it; raise if neither is possible."""
    if health.protocol > PROTOCOL:
        raise BackendUnavailable(
            f"the backend of this machine (arkor {health.version}) is newer than this arkor ({VERSION})",
            remedy="upgrade this one: pip install --upgrade arkor",
        )
    same_protocol = health.protocol == PROTOCOL
    if same_protocol and (health.active_runs or _release(health.version) >= _release(VERSION)):
        return True
    if health.active_runs:
        raise BackendUnavailable(
            f"the backend of this machine (arkor {health.version}, process {info.pid}) is older than this arkor "
            f"({VERSION}) and has {health.active_runs} run(s) in progress",
            remedy="wait for them, or cancel them with the arkor that started them (`arkor jobs`, `arkor cancel`), "
            "or set ARKOR_HOME to another folder",
        )
    return False


def _release(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", str(version))[:3]]


# Starting


def missing_packages(required: Sequence[str] = REQUIRED_PACKAGES) -> list[str]:
    """Return the packages that are not installed, by default those that a backend needs."""
    return [name for name in required if importlib.util.find_spec(name) is None]


def _start(home: Path) -> tuple[BackendInfo, Health]:
    if missing := missing_packages():
        raise BackendUnavailable(
            f"training on this machine needs packages that are not installed ({', '.join(missing)})",
            remedy='pip install "arkor[local]", or set ARKOR_CLOUD_API_URL to use another backend',
        )
    with _home_errors(home):
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _start_lock(home):
        stale = read_backend_info(home)
        running = _find_running(home)  # another process may have started one
        if running is not None and not is_compatible(*running):
            _request_shutdown(home, running[0])
            running = None
        return running or _launch(home, stale)


@contextmanager
def _home_errors(home: Path) -> Iterator[None]:
    """Raise an OSError as a `BackendUnavailable` that blames the home."""
    try:
        yield
    except OSError as error:
        raise BackendUnavailable(
            f"{error.filename or home} cannot be used ({error.strerror or error})",
            remedy="free some disk space or fix its permissions, or set ARKOR_HOME to a writable folder",
        ) from error


@contextmanager
def _start_lock(home: Path) -> Iterator[None]:
    """Let one process at a time decide whether to start a backend."""
    lock = Lock(home / "start.lock")
    with _home_errors(home):
        acquired = lock.acquire(LOCK_SECONDS)
    if not acquired:
        raise BackendUnavailable(
            f"another process has been starting the backend for more than {LOCK_SECONDS:.0f} s (it holds {lock.path})",
            remedy="try again, or end that process",
        )
    with lock:
        yield


def _request_shutdown(home: Path, info: BackendInfo) -> None:
    try:
        os.kill(info.pid, signal.SIGTERM)
    except ProcessLookupError:
        return
    except PermissionError:
        problem = f"the older backend in {home} (process {info.pid}) belongs to another user"
        raise BackendUnavailable(problem, remedy="set ARKOR_HOME to a folder of your own") from None
    deadline = time.monotonic() + SHUTDOWN_SECONDS
    while is_alive(info.pid):
        if time.monotonic() > deadline:
            problem = f"the older backend of this machine (process {info.pid}) did not exit after SIGTERM"
            raise BackendUnavailable(problem, remedy=f"end it: kill -9 {info.pid}")
        time.sleep(0.01)


def _launch(home: Path, stale: BackendInfo | None) -> tuple[BackendInfo, Health]:
    """Start a server and wait until it, or one that another process started, answers."""
    log = home / "backend.log"
    deadline = time.monotonic() + START_SECONDS
    process, log_offset = _spawn(home, log)
    while time.monotonic() < deadline:
        if running := _find_running(home, ignored=stale):
            return running
        exit_code = process.poll()
        if exit_code == EXIT_ALREADY_SERVING:  # another server is starting or exiting
            time.sleep(0.1)
            stale = None
            process, log_offset = _spawn(home, log)
        elif exit_code is not None:
            raise BackendUnavailable(f"the backend of this machine could not start: {_log_tail(log, log_offset)}")
        time.sleep(0.01)
    process.terminate()
    raise BackendUnavailable(
        f"the backend of this machine did not answer within {START_SECONDS:.0f} s: {_log_tail(log, log_offset)}"
    )


def _spawn(home: Path, log: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Start a server that outlives this process; return it and its offset in the log."""
    if not sys.executable:
        raise BackendUnavailable("the path of this Python is unknown", remedy="start `arkor serve` yourself")
    command = [sys.executable, "-m", "arkor.backend", "--home", str(home)]
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    with _home_errors(home), os.fdopen(os.open(log, flags, 0o600), "ab") as output:
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


def server_environment() -> dict[str, str]:
    """Return a server's environment; PYTHONPATH finds this package unless it is installed."""
    folder = str(Path(__file__).resolve().parents[2])
    environment = dict(os.environ)
    if folder not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))
    return environment


def _log_tail(log: Path, offset: int) -> str:
    """Return the last line of the log after that offset, and the path of the log."""
    with log.open("rb") as file:
        file.seek(offset)
        lines = file.read()[-8192:].decode("utf-8", "replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it wrote no output")
    return f"{last[:500]} (more in {log})"
