"""`arkor doctor` on healthy installations, and on installations with one defect each."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from arkor.cli.doctor import local_backend
from arkor.settings import VERSION, arkor_home
from tests.cli.conftest import ARKOR, Run
from tests.conftest import Backend, start_backend
from tests.fakes.http_server import Answer, HttpServer

pytestmark = [
    pytest.mark.slow,  # every test starts processes of its own
    pytest.mark.usefixtures("fast_imports"),
]

TOKEN = "arkor_secret-token-of-somebody-0123456789"

#: Hides packages from every Python that has this folder in its PYTHONPATH.
HIDING = """
import sys
from importlib.machinery import PathFinder

class Hiding:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name.split(".")[0] in {hidden!r} else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Hiding
"""


def ailments(run: Run) -> dict[str, dict[str, Any]]:
    """Return the warnings and problems by subject, after checking the exit code."""
    done = run("doctor", "--json")
    assert done.stderr == ""
    report = json.loads(done.stdout)
    found = {item["subject"]: item for item in report["findings"] if item["level"] != "ok"}
    assert report["version"] == VERSION
    sound = all(item["level"] != "problem" for item in found.values())
    assert (report["ok"], done.returncode) == (sound, 0 if sound else 1)
    assert TOKEN not in done.stdout
    return found


def test_one_that_is_well_and_new(run_anew: Run) -> None:
    done = run_anew("doctor")
    assert (done.returncode, done.stderr) == (0, "")
    *lines, blank, last = done.stdout.splitlines()
    assert (blank, last) == ("", "No problems found.")
    assert all(line.startswith("ok       ") for line in lines)
    assert not arkor_home().exists()


def modified(home: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in home.rglob("*") if path.is_file()}


def test_one_at_work(run: Run, backend: Backend, finished_run: str) -> None:
    before: dict[Path, int] = {}
    now = modified(backend.home)
    while before != now:  # the worker and the supervisor are still writing
        time.sleep(1)
        before, now = now, modified(backend.home)
    done = run("doctor")
    assert done.returncode == 0, done.stdout
    assert f"process {backend.process.pid} responds at {backend.url} (arkor {VERSION}, 0 active runs)" in done.stdout
    assert "intact, with 1 run\n" in done.stdout
    assert backend.token not in done.stdout
    assert modified(backend.home) == before


def test_packages_that_are_not_there(run_anew: Run, fast_imports: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (fast_imports / "sitecustomize.py").write_text(HIDING.format(hidden={"torch", "sqlalchemy"}))
    found = ailments(run_anew)["packages"]
    assert (found["level"], found["sentence"]) == ("problem", "not installed: sqlalchemy, torch")
    assert found["remedy"] == 'pip install "arkor[local]"'
    monkeypatch.setenv("ARKOR_CLOUD_API_URL", "http://127.0.0.1:9")
    assert "packages" not in ailments(run_anew)


def test_a_library_that_is_broken(run: Run, fast_imports: Path) -> None:
    (fast_imports / "trl" / "__init__.py").write_text("raise OSError('libfoo.so: cannot open shared object file')")
    found = ailments(run)["device"]
    assert found["sentence"] == "trl cannot be imported (libfoo.so: cannot open shared object file)"
    (fast_imports / "trl" / "__init__.py").write_text("import os\nos.kill(os.getpid(), 11)")
    assert ailments(run)["device"]["sentence"] == "this check failed (signal 11)"


def test_homes(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arkor_home().mkdir(mode=0o755)
    assert ailments(run)["home"]["remedy"] == f"chmod 700 {arkor_home()}"
    (tmp_path / "file").touch()
    monkeypatch.setenv("ARKOR_HOME", str(tmp_path / "file"))
    assert ailments(run)["home"]["level"] == "problem"
    monkeypatch.setenv("ARKOR_HOME", str(tmp_path / "file" / "below"))
    assert ailments(run)["home"]["level"] == "problem"


def test_a_sign_in(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    arkor_home().mkdir(mode=0o700)
    file = arkor_home() / "credentials.json"
    file.touch(0o600)
    file.write_text(f'{{"token": "{TOKEN}"')
    assert "is invalid" in ailments(run)["sign-in"]["sentence"]
    file.unlink()
    file.mkdir()
    assert ailments(run)["sign-in"]["level"] == "problem"
    file.rmdir()
    anonymous = {"mode": "anon", "token": TOKEN, "anonymousId": "a", "orgSlug": "o"}
    file.write_text(json.dumps({**anonymous, "arkorCloudApiUrl": "http://127.0.0.1:9"}))
    file.chmod(0o644)
    found = ailments(run)
    assert found["sign-in"]["remedy"] == f"chmod 600 {file}"
    assert found["backend"]["level"] == "problem"
    monkeypatch.setenv("ARKOR_CLOUD_API_URL", "http://127.0.0.1:7")
    done = run("doctor")
    assert "ARKOR_CLOUD_API_URL is http://127.0.0.1:7, but the sign-in is for http://127.0.0.1:9" in done.stdout


def test_a_backend_elsewhere(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    arkor_home().mkdir(mode=0o700)
    with HttpServer(lambda request: Answer(200 if request.path == "/healthz" else 401, {"version": "9.9"})) as server:
        monkeypatch.setenv("ARKOR_CLOUD_API_URL", server.url)
        assert ailments(run) == {}
        anonymous = {"mode": "anon", "token": TOKEN, "anonymousId": "a", "orgSlug": "o", "arkorCloudApiUrl": server.url}
        (arkor_home() / "credentials.json").touch(0o600)
        (arkor_home() / "credentials.json").write_text(json.dumps(anonymous))
        assert "it does not know the sign-in" in ailments(run)["backend"]["sentence"]
    assert "does not answer" in (found := ailments(run)["backend"])["sentence"] or "reached" in found["sentence"]
    monkeypatch.setenv("ARKOR_CLOUD_API_URL", "gpu-box:8230")
    assert "is invalid" in ailments(run)["backend"]["sentence"]


def test_the_network(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere.pem")
    assert ailments(run)["network"]["remedy"] == "unset REQUESTS_CA_BUNDLE, or correct it"
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    monkeypatch.setenv("ARKOR_CLOUD_API_URL", "http://gpu-box:8230")
    monkeypatch.setenv("HTTP_PROXY", f"http://me:{TOKEN}@127.0.0.1:9")
    assert ailments(run)["network"]["sentence"] == "calls to gpu-box use the proxy http://127.0.0.1:9"


def test_a_backend_that_is_mute(run: Run, backend: Backend) -> None:
    os.kill(backend.process.pid, signal.SIGSTOP)
    try:
        found = ailments(run)["process"]
    finally:
        os.kill(backend.process.pid, signal.SIGCONT)
    assert found["sentence"] == f"process {backend.process.pid} serves this home, but does not respond"
    assert f"kill {backend.process.pid}" in found["remedy"]


def test_what_a_backend_that_was_killed_leaves(run: Run, backend: Backend) -> None:
    backend.process.kill()
    backend.process.wait()
    (backend.home / "runs" / ".abc.new").mkdir()
    found = ailments(run)
    assert found["process"]["sentence"] == f"backend.json names process {backend.process.pid}, which has ended"
    assert found["leftovers"]["level"] == "warning"
    (backend.home / "backend.json").write_text("{")
    assert "is invalid" in ailments(run)["process"]["sentence"]


@pytest.mark.parametrize(
    ("version", "protocol", "says"),
    [
        ("0.0.1", 0, "2 active runs); it is incompatible with this arkor"),
        ("99.0", 99, "it is incompatible"),
        ("0.0.1", 1, None),
    ],
)
def test_a_backend_of_another_version(run: Run, version: str, protocol: int, says: str | None) -> None:
    health = {"status": "ok", "version": version, "protocol": protocol, "activeRuns": 2}
    arkor_home().mkdir(mode=0o700)
    with HttpServer(Answer(200, health)) as server:
        info = {"url": server.url, "token": TOKEN, "pid": os.getpid()}
        (arkor_home() / "backend.json").write_text(json.dumps(info))
        found = ailments(run)
    assert (says in found["process"]["sentence"]) if says else not found


def test_the_last_error_of_its_log(tmp_path: Path) -> None:
    log = tmp_path / "backend.log"
    log.write_text(f"2001-01-01 00:00:00,000 ERROR arkor.backend: an old one\nTraceback\n  {TOKEN}\n")
    assert list(local_backend.check_log(log)) == []
    late = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
    log.write_text(f"{late},000 ERROR arkor.backend: it broke ({TOKEN})\n{late},001 INFO arkor.backend: fine\n")
    (found,) = local_backend.check_log(log)
    assert found.sentence == f"{late}: it broke (…)"
    log.write_text("x\nThe backend cannot use /x: full.\n\n")
    (found,) = local_backend.check_log(log)
    assert found.sentence == "The backend cannot use /x: full."


def test_rebuilding(run: Run, backend: Backend, finished_run: str) -> None:
    refused = run("doctor", "--rebuild")
    assert refused.returncode == 1
    assert refused.stderr.endswith(f"then try again: kill {backend.process.pid}\n")
    backend.process.terminate()
    backend.process.wait()
    (backend.home / "arkor.db").write_bytes(b"garbage" * 1000)
    assert ailments(run)["database"]["remedy"].endswith("arkor doctor --rebuild")
    done = run("doctor", "--rebuild")
    assert done.returncode == 0, done.stderr
    assert "with 1 run from its folder." in done.stdout
    assert (backend.home / "arkor.db.aside-1").read_bytes().startswith(b"garbage")
    again = start_backend(backend.home, "--engine", "scripted")
    assert finished_run in run("jobs").stdout
    again.process.kill()
    again.process.wait()


@pytest.fixture
def terminal(project: Path) -> Iterator[Any]:
    """Run `arkor doctor` in a terminal of 80 columns, and return what it shows."""

    def show(**environment: str) -> str:
        ours, theirs = pty.openpty()
        size = {**os.environ, "COLUMNS": "80", **environment}
        done = subprocess.Popen([*ARKOR, "doctor"], stdout=theirs, stderr=theirs, stdin=theirs, cwd=project, env=size)
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 65536):
                shown += piece
        except OSError:
            pass
        os.close(ours)
        done.wait()
        return shown.decode()

    return show


def test_in_a_terminal_it_has_colours_and_fits(terminal: Any) -> None:
    colourful = terminal(PYTHONPATH="")
    assert "training uses" in colourful
    assert "\x1b[32mok" in colourful
    plain = terminal(NO_COLOR="1")
    assert "\x1b[" not in plain
    assert sys.executable in plain
    assert all(len(line) <= 80 or "/" in line for line in plain.splitlines())
