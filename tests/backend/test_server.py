"""The server's process: starting, being found, leaving, and saying why it cannot start."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests

from arkor.backend.runs.paths import run_folder
from arkor.settings import PROTOCOL, VERSION
from tests.backend.caller import Caller, owner
from tests.conftest import Backend, start_backend

pytestmark = pytest.mark.slow  # every test starts processes of its own


COMMAND = [sys.executable, "-m", "arkor.backend", "--engine", "scripted"]


def fails(*arguments: str, prefix: str = "") -> subprocess.CompletedProcess[str]:
    """What a server that cannot start says; it must be a sentence."""
    command = prefix + shlex.join([*COMMAND, *arguments])
    result = subprocess.run(["bash", "-c", command], check=False, capture_output=True, text=True, timeout=30)
    assert "Traceback" not in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stderr.strip().endswith(
        (".", "doctor --rebuild", "(32))'")
    )  # a sentence, or the command that it leads to
    return result


def test_how_it_is_found(backend: Backend) -> None:
    file = backend.home / "backend.json"
    found = json.loads(file.read_text())
    assert set(found) == {"url", "token", "pid", "version", "protocol"}
    assert (found["pid"], found["version"], found["protocol"]) == (backend.process.pid, VERSION, PROTOCOL)
    assert found["url"].startswith("http://127.0.0.1:")
    assert file.stat().st_mode & 0o777 == 0o600
    for path in backend.home.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0 or path.name == "test-backend.log", path


def test_it_leaves_when_told_to(backend: Backend) -> None:
    backend.process.send_signal(signal.SIGTERM)
    assert backend.process.wait(timeout=60) == 0
    assert not (backend.home / "backend.json").exists()
    assert (backend.home / "test-backend.log").read_text() == ""


def test_the_owners_token_stays(backend: Backend) -> None:
    backend.process.kill()
    backend.process.wait()
    second = start_backend(backend.home, "--engine", "scripted", anew=True)
    assert second.token == backend.token
    assert Caller(second.url, backend.token).call("GET", "/v1/me").status_code == 200
    second.process.kill()
    second.process.wait()


def test_there_is_one_server_per_home(backend: Backend) -> None:
    result = fails("--home", str(backend.home))
    assert result.returncode == 3
    assert str(backend.home) in result.stderr
    assert json.loads((backend.home / "backend.json").read_text())["pid"] == backend.process.pid


def test_it_leaves_after_a_quiet_while(tmp_path: Path) -> None:
    backend = start_backend(tmp_path / "arkor-home", "--engine", "scripted", "--idle", "3", anew=True)
    for _ in range(3):
        time.sleep(1.2)
        called = time.monotonic()
        assert owner(backend).call("GET", "/healthz").status_code == 200
    assert backend.process.wait(timeout=60) == 0
    assert time.monotonic() - called >= 3


def test_it_stays_for_a_run_and_for_a_watcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARKOR_SCRIPTED_STEP_SECONDS", "0.1")
    backend = start_backend(tmp_path / "arkor-home", "--engine", "scripted", "--idle", "0.5", anew=True)
    caller = owner(backend)
    job = caller.submit(maxSteps=1000)
    while b'"step":15,' not in run_folder(backend.home, job).events.read_bytes():
        time.sleep(0.01)
    assert backend.process.poll() is None
    watching = caller.events(job)
    while next(watching).data.get("step", 0) < 30:
        pass
    caller.cancel(job)
    assert list(watching)[-1].event == "end"
    assert backend.process.wait(timeout=60) == 0


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = fails("--home", str(tmp_path), "--port", port)
    assert result.returncode == 2
    assert port in result.stderr
    assert "--port" in result.stderr


def test_a_port_that_is_none(tmp_path: Path) -> None:
    assert fails("--home", str(tmp_path), "--port", "70000").returncode == 2


def test_a_home_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    result = fails("--home", str(tmp_path / "file" / "home"))
    assert result.returncode == 2
    assert str(tmp_path / "file") in result.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_home_that_is_read_only(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert fails("--home", str(tmp_path)).returncode == 2


def test_a_full_disk(tmp_path: Path) -> None:
    result = fails("--home", str(tmp_path), prefix="ulimit -f 0; ")
    assert result.returncode == 2
    assert str(tmp_path) in result.stderr


def test_a_database_that_is_garbage(tmp_path: Path) -> None:
    (tmp_path / "arkor.db").write_bytes(b"garbage " * 1000)
    result = fails("--home", str(tmp_path))
    assert result.returncode == 2
    assert str(tmp_path / "arkor.db") in result.stderr
    assert (tmp_path / "arkor.db").read_bytes() == b"garbage " * 1000


def test_what_a_dead_server_left_is_no_obstacle(backend: Backend) -> None:
    backend.process.kill()
    backend.process.wait()
    (backend.home / "datasets" / ".torn.part").write_bytes(b"x")
    second = start_backend(backend.home, "--engine", "scripted", anew=True)
    assert second.url != backend.url
    assert not (backend.home / "datasets" / ".torn.part").exists()
    second.process.kill()
    second.process.wait()


def test_it_starts_fast_and_stays_small(tmp_path: Path) -> None:
    backend = start_backend(tmp_path / "arkor-home", "--engine", "scripted", anew=True)
    assert requests.get(f"{backend.url}/healthz", timeout=60).status_code == 200
    process = psutil.Process(backend.process.pid)
    assert sum(process.cpu_times()[:2]) < 5
    assert process.memory_info().rss < 150_000_000
    before = sum(process.cpu_times()[:2])
    time.sleep(2)
    assert sum(process.cpu_times()[:2]) - before < 0.04  # 2 % of a core
    backend.process.kill()
    backend.process.wait()


def test_it_imports_no_torch(tmp_path: Path) -> None:
    code = "import sys, arkor.backend.__main__, arkor.backend.workers.worker; print('torch' in sys.modules, 'trl' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]


# For other machines


TOKEN = "of-the-operator-0123456789"


def test_other_machines_reach_it_only_with_a_token(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::", ""):
        result = fails("--home", str(tmp_path / "home"), "--host", host)
        assert result.returncode == 2
        assert "--token-file" in result.stderr
        assert "ARKOR_SERVE_TOKEN" in result.stderr
        assert not (tmp_path / "home" / "backend.json").exists()


@pytest.mark.parametrize("token", ["short", "with a blank in it and long", "ä" * 20, ""])
def test_a_token_that_is_none(tmp_path: Path, token: str) -> None:
    (tmp_path / "token").write_text(token)
    result = fails("--home", str(tmp_path), "--host", "0.0.0.0", "--token-file", str(tmp_path / "token"))
    assert result.returncode == 2
    assert str(tmp_path / "token") in result.stderr
    assert not token or token not in result.stderr


def test_a_token_file_that_is_not_there(tmp_path: Path) -> None:
    result = fails("--home", str(tmp_path), "--token-file", str(tmp_path / "nowhere"))
    assert (result.returncode, "nowhere" in result.stderr) == (2, True)


@pytest.fixture(params=["file", "environment"])
def public(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    """A backend that listens everywhere."""
    arguments = ["--engine", "scripted", "--host", "0.0.0.0"]
    if request.param == "file":
        (tmp_path / "token").write_text(f"{TOKEN}\n")
        arguments += ["--token-file", str(tmp_path / "token")]
    else:
        monkeypatch.setenv("ARKOR_SERVE_TOKEN", TOKEN)
    started = start_backend(tmp_path / "arkor-home", *arguments, anew=True)
    yield started
    started.process.kill()
    started.process.wait()


def test_the_operators_token_is_the_owners(public: Backend) -> None:
    caller = Caller(public.url, TOKEN)
    me = caller.call("GET", "/v1/me").json()
    assert (me["user"]["id"], [org["slug"] for org in me["orgs"]]) == ("local", ["local"])
    job = caller.submit(maxSteps=1)
    caller.until(job, "completed")
    assert owner(public).job(job)["status"] == "completed"


def test_nobody_signs_in_there_without_it(public: Backend) -> None:
    sign_up = ("POST", "/v1/auth/anonymous")
    refusal = Caller(public.url, None).call(*sign_up, json={"kind": "cli"})
    assert (refusal.status_code, refusal.json()["code"]) == (401, "token_required")
    identity = Caller(public.url, TOKEN).call(*sign_up, json={"kind": "cli"})
    assert identity.status_code == 201
    assert Caller(public.url, identity.json()["token"]).call(*sign_up, json={"kind": "cli"}).status_code == 401


def test_it_is_called_by_any_name_there_but_by_no_page_of_another_site(public: Backend) -> None:
    caller = Caller(public.url, TOKEN)
    assert caller.call("GET", "/v1/me", headers={"Host": "gpu-box:8230"}).status_code == 200
    headers = {"Host": "gpu-box:8230", "Origin": "http://evil.example"}
    assert caller.call("GET", "/v1/me", headers=headers).status_code == 403


def test_the_operators_token_is_kept_nowhere(public: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    caller = Caller(public.url, TOKEN)
    caller.until(caller.submit(maxSteps=1), "completed")
    job = caller.submit(maxSteps=100_000_000)
    caller.until(job, "running")
    for child in psutil.Process(public.process.pid).children(recursive=True):
        assert TOKEN not in child.environ().values()
        assert TOKEN not in " ".join(child.cmdline())
    assert not [file for file in public.home.rglob("*") if file.is_file() and TOKEN.encode() in file.read_bytes()]
    public.process.kill()
    public.process.wait()
    monkeypatch.delenv("ARKOR_SERVE_TOKEN", raising=False)
    second = start_backend(public.home, "--engine", "scripted", anew=True)
    assert Caller(second.url, TOKEN).call("GET", "/v1/me").status_code == 401
    second.process.kill()
    second.process.wait()


def test_a_proxy_on_this_machine_brings_the_token_of_whom_it_speaks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARKOR_SERVE_TOKEN", TOKEN)
    backend = start_backend(tmp_path / "arkor-home", "--engine", "scripted", anew=True)
    handed_on = {"Host": "arkor.example", "X-Forwarded-For": "203.0.113.5"}
    sign_up = ("POST", "/v1/auth/anonymous")
    for headers in (handed_on, {}):
        assert Caller(backend.url, None).call(*sign_up, json={"kind": "cli"}, headers=headers).status_code == 401
    assert Caller(backend.url, TOKEN).call("GET", "/v1/me", headers=handed_on).status_code == 200
    backend.process.kill()
    backend.process.wait()
