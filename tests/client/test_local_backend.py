"""The backend of this machine in real processes: finding, starting, sharing, replacing."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from arkor.client.api import CloudApiClient
from arkor.client.local_backend import LocalBackendAuth, find_or_start
from arkor.errors import BackendUnavailable
from arkor.protocol.jobs import Scope
from arkor.settings import PROTOCOL, VERSION, arkor_home
from tests.conftest import Backend, start_backend, stop_backend
from tests.fakes.http_server import Answer, HttpServer, Request

pytestmark = pytest.mark.slow  # every test starts processes


FIND = "from arkor.client.local_backend import *; f = find_or_start(); print(f.arkor_cloud_api_url, f.token)"


def listing() -> dict[str, Any]:
    data: dict[str, Any] = json.loads((arkor_home() / "backend.json").read_text())
    return data


def write_listing(**fields: Any) -> None:
    arkor_home().mkdir(exist_ok=True)
    (arkor_home() / "backend.json").write_text(json.dumps(fields))


@contextmanager
def bystander(*, deaf: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    """A process in place of a backend, which exits on SIGTERM unless it is `deaf`."""
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    command = [sys.executable, "-c", code] if deaf else ["sleep", "60"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    if deaf:
        assert process.stdout is not None
        process.stdout.readline()
    reaper = threading.Thread(target=process.wait, daemon=True)
    reaper.start()
    try:
        yield process
    finally:
        process.kill()
        reaper.join()
        assert process.stdout is not None
        process.stdout.close()


def healthy(version: str = VERSION, protocol: int = PROTOCOL, active_runs: int = 0) -> Answer:
    return Answer(200, {"status": "ok", "version": version, "protocol": protocol, "activeRuns": active_runs})


# Finding


def test_a_running_backend_is_used(backend: Backend) -> None:
    found = find_or_start(backend.home)
    assert (found.arkor_cloud_api_url, found.token, found.org_slug) == (backend.url, backend.token, "local")
    assert CloudApiClient(found.arkor_cloud_api_url, found, scope=Scope("local", "default")).list_jobs() == []


def test_finding_a_backend_is_quick(backend: Backend) -> None:
    began = time.monotonic()
    for _ in range(20):
        find_or_start(backend.home)
    assert (time.monotonic() - began) / 20 < 0.5


# Starting


def test_a_backend_is_started_and_outlives_its_starter() -> None:
    began = time.monotonic()
    first = subprocess.check_output([sys.executable, "-c", FIND], text=True)
    assert time.monotonic() - began < 60
    assert subprocess.check_output([sys.executable, "-c", FIND], text=True) == first
    assert os.getsid(listing()["pid"]) != os.getsid(0)


@pytest.mark.slow
def test_a_cold_start_is_quick(tmp_path: Path) -> None:
    def cold_start(home: Path) -> float:
        began = time.monotonic()
        found = find_or_start(home)
        CloudApiClient(found.arkor_cloud_api_url, found).me()
        seconds = time.monotonic() - began
        stop_backend(home)
        return seconds

    assert min(cold_start(tmp_path / f"home-{number}") for number in range(4)) < 5  # measured: 0.7 s


@pytest.mark.slow
def test_concurrent_processes_share_one_backend() -> None:
    starters = [subprocess.Popen([sys.executable, "-c", FIND], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    answers = {starter.communicate(timeout=60)[0] for starter in starters}
    assert len(answers) == 1
    assert listing()["url"] in answers.pop()


@pytest.mark.slow
def test_concurrent_threads_share_one_backend() -> None:
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(find_or_start().arkor_cloud_api_url)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [listing()["url"]] * 4


SLOWER = [pytest.param(name, marks=pytest.mark.slow) for name in ("garbage", "empty", "other shape", "lock file")]


@pytest.mark.parametrize("leftover", ["dead pid", "foreign port", *SLOWER])
def test_files_of_a_dead_backend_do_not_block(leftover: str) -> None:
    with bystander() as process, HttpServer(Answer(404, b"<html>not yours</html>")) as foreign:
        arkor_home().mkdir()
        texts = {"garbage": "{", "empty": "", "other shape": '["url"]'}
        if leftover == "dead pid":
            write_listing(url="http://127.0.0.1:1", token="t", pid=2**22 - 1, version="0", protocol=0)
        elif leftover == "foreign port":
            write_listing(url=foreign.url, token="t", pid=process.pid, version=VERSION, protocol=PROTOCOL)
        elif leftover == "lock file":
            (arkor_home() / "start.lock").touch()
            (arkor_home() / "backend.lock").touch()
        else:
            (arkor_home() / "backend.json").write_text(texts[leftover])
        found = find_or_start()
    assert found.arkor_cloud_api_url == listing()["url"] != foreign.url


@pytest.mark.slow
def test_a_port_reused_by_another_home_is_not_ours(backend: Backend, tmp_path: Path) -> None:
    """Another process may use a port that was ours; only the token identifies our backend."""
    other = tmp_path / "other-home"
    other.mkdir()
    mine = {"url": backend.url, "token": "not-that-token", "pid": backend.process.pid, "version": VERSION}
    (other / "backend.json").write_text(json.dumps(mine))
    found = find_or_start(other)
    try:
        assert found.arkor_cloud_api_url != backend.url
    finally:
        os.kill(json.loads((other / "backend.json").read_text())["pid"], signal.SIGKILL)


def test_a_killed_backend_is_replaced(backend: Backend) -> None:
    access = LocalBackendAuth(backend.home)
    caller = CloudApiClient(backend.url, access.credentials, scope=Scope("local", "default"), access=access)
    assert caller.list_jobs() == []
    backend.process.kill()
    backend.process.wait()
    with pytest.raises(BackendUnavailable):
        CloudApiClient(backend.url, access.credentials, scope=Scope("local", "default")).open_event_stream("j")
    assert caller.list_jobs() == []
    assert caller.base_url == listing()["url"]
    assert access.source == "embedded"


@pytest.mark.slow
def test_a_backend_that_is_exiting_is_waited_for(tmp_path: Path) -> None:
    arkor_home().mkdir()
    with (arkor_home() / "backend.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        threading.Timer(1.0, lambda: fcntl.flock(lock, fcntl.LOCK_UN)).start()
        assert find_or_start().arkor_cloud_api_url == listing()["url"]


@pytest.mark.slow
def test_a_forked_copy_of_the_lock_does_not_block() -> None:
    code = f"""
import os, time
from pathlib import Path
from arkor.client import local_backend as embedded
with embedded._start_lock(Path(os.environ["ARKOR_HOME"])):
    child = os.fork()
    if child == 0:
        time.sleep(5)
        os._exit(0)
{FIND}
"""
    arkor_home().mkdir()
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline().startswith("http://127.0.0.1")
    process.wait(20)


# Incompatible backends


@pytest.mark.parametrize("version", ["0.0.1", pytest.param(VERSION, marks=pytest.mark.slow)])
def test_an_idle_older_backend_is_replaced(version: str) -> None:
    with bystander() as process, HttpServer(healthy(version, PROTOCOL - 1)) as old:
        write_listing(url=old.url, token="t", pid=process.pid, version=version, protocol=PROTOCOL - 1)
        assert find_or_start().arkor_cloud_api_url == listing()["url"] != old.url
        assert process.wait(30) == -signal.SIGTERM


@pytest.mark.slow
def test_a_real_older_backend_is_replaced(backend: Backend) -> None:
    """A fake health route makes it look old; the real process receives the signal."""
    with HttpServer(healthy("0.0.1")) as old:
        write_listing(url=old.url, token="t", pid=backend.process.pid, version="0.0.1", protocol=PROTOCOL)
        reaper = threading.Thread(target=backend.process.wait, daemon=True)
        reaper.start()
        found = find_or_start(backend.home)
    assert found.arkor_cloud_api_url == listing()["url"]
    assert listing()["pid"] != backend.process.pid
    assert found.token == backend.token
    reaper.join(30)
    assert backend.process.returncode == 0


def test_a_busy_older_backend_is_not_replaced() -> None:
    with bystander() as process, HttpServer(healthy("0.0.1", PROTOCOL - 1, active_runs=2)) as old:
        write_listing(url=old.url, token="t", pid=process.pid, version="0.0.1", protocol=PROTOCOL - 1)
        with pytest.raises(BackendUnavailable) as caught:
            find_or_start()
        assert process.poll() is None
    for word in ("0.0.1", VERSION, "2 run(s) in progress", "arkor cancel", "ARKOR_HOME"):
        assert word in str(caught.value)


@pytest.mark.parametrize("answer", [healthy("0.0.1", active_runs=1), healthy("99.0"), healthy()])
def test_a_compatible_backend_is_used(answer: Answer) -> None:
    with bystander() as process, HttpServer(answer) as other:
        write_listing(url=other.url, token="t", pid=process.pid, version="x", protocol=PROTOCOL)
        assert find_or_start().arkor_cloud_api_url == other.url


def test_an_incompatible_newer_backend_asks_for_an_upgrade() -> None:
    with bystander() as process, HttpServer(healthy("99.0", PROTOCOL + 1)) as newer:
        write_listing(url=newer.url, token="t", pid=process.pid, version="99.0", protocol=PROTOCOL + 1)
        with pytest.raises(BackendUnavailable, match="pip install --upgrade arkor"):
            find_or_start()


@pytest.mark.slow
def test_a_backend_that_rejects_the_token_is_not_ours() -> None:
    def strict(request: Request) -> Answer:
        return healthy() if request.path == "/healthz" else Answer(401, {"error": "no"})

    with bystander() as process, HttpServer(strict) as other:
        write_listing(url=other.url, token="t", pid=process.pid, version=VERSION, protocol=PROTOCOL)
        assert find_or_start().arkor_cloud_api_url != other.url


@pytest.mark.slow
def test_a_backend_that_does_not_exit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arkor.client.local_backend.SHUTDOWN_SECONDS", 1.0)
    with bystander(deaf=True) as process, HttpServer(healthy("0.0.1")) as old:
        write_listing(url=old.url, token="t", pid=process.pid, version="0.0.1", protocol=PROTOCOL)
        with pytest.raises(BackendUnavailable, match=f"kill -9 {process.pid}"):
            find_or_start()


@pytest.mark.slow
def test_an_unresponsive_backend_is_named(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arkor.client.local_backend.HEALTH_SECONDS", (0.2, 0.5, 1.0))
    os.kill(backend.process.pid, signal.SIGSTOP)
    try:
        with pytest.raises(BackendUnavailable, match=f"does not answer.*kill {backend.process.pid}"):
            find_or_start(backend.home)
    finally:
        os.kill(backend.process.pid, signal.SIGCONT)


# Unusable homes


def test_a_home_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BackendUnavailable, match=f"{tmp_path}/file.*cannot be used.*ARKOR_HOME"):
        find_or_start(tmp_path / "file" / "home")


def test_a_home_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BackendUnavailable, match=f"{tmp_path}/file.*cannot be used"):
        find_or_start(tmp_path / "file")


def test_the_reason_of_a_failed_start_is_named() -> None:
    arkor_home().mkdir()
    (arkor_home() / "arkor.db").mkdir()
    with pytest.raises(BackendUnavailable) as caught:
        find_or_start()
    assert "could not start" in str(caught.value)
    assert str(arkor_home() / "backend.log") in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    monkeypatch.setattr(sys, "modules", {k: m for k, m in sys.modules.items() if k.split(".")[0] != "starlette"})
    with pytest.raises(BackendUnavailable, match=r'starlette.*pip install "arkor\[local\]"'):
        find_or_start()


@pytest.mark.slow
def test_a_second_server_for_a_home_exits(backend: Backend) -> None:
    with pytest.raises(AssertionError):
        start_backend(backend.home, "--engine", "scripted")
    assert find_or_start(backend.home).arkor_cloud_api_url == backend.url
