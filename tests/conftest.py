"""What every test gets: a home of its own and no word from the outside; a real backend for those that ask."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import hypothesis
import psutil
import pytest
from attrs import frozen

from arkor.backend.compute.models import local_folder
from arkor.backend.runs.paths import models_folder
from arkor.files import Lock
from arkor.settings import PROTOCOL, STARTER_MODEL
from tests import browsers
from tests.fakes.forkserver import ForkedProcess, fork_backend

PROJECT = Path(__file__).parent.parent

os.environ["HF_HUB_OFFLINE"] = "1"  # the library looks once, when it is imported; else it tries for a long time

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # a thousand processes of ours would compile ours a thousand times
sys.dont_write_bytecode = False

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are tiny, and other files of tests use the other cores

signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs us in the background had it ignored, for our
# processes, too


SETTINGS_OF_A_TERMINAL = ("CI", "NO_COLOR", "COLUMNS", "LINES")

hypothesis.settings.register_profile("arkor", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("arkor")  # how fast a machine is says nothing of the code


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--schedules", type=int, default=None, help="how many random schedules of faults to play (default: a few)"
    )
    parser.addoption(
        "--calls", type=int, default=4, help="how many made-up calls of each route Schemathesis makes (default: a few)"
    )
    parser.addoption("--require-browser", action="store_true", help="fail where there is no Chromium (default: skip)")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = terminalreporter.stats.get("skipped", [])
    if skipped := sum(
        isinstance(report.longrepr, tuple) and browsers.MISSING in report.longrepr[2] for report in reports
    ):
        terminalreporter.write_line(browsers.summary(skipped), yellow=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files with a few slow tests first: whoever gets one of those last would keep the others waiting."""
    tests = Counter(item.path for item in items)
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path not in slow, tests[item.path], item.path))


def settings_from_outside() -> list[str]:
    """The names of what whoever runs the tests may have set, and no test is to know of."""
    return [
        name
        for name in os.environ
        if name.startswith("ARKOR_") or name.lower().endswith("_proxy") or name in SETTINGS_OF_A_TERMINAL
    ]


for setting in settings_from_outside():  # some fixtures live longer than a test
    del os.environ[setting]


@pytest.fixture(autouse=True)
def clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """ARKOR_HOME below tmp_path, the hub offline, no proxy; a backend that the test started is stopped."""
    for name in settings_from_outside():
        monkeypatch.delenv(name)
    home = tmp_path / "arkor-home"
    monkeypatch.setenv("ARKOR_HOME", str(home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    yield
    if home.exists():
        stop_backend(home)


def stop_backend(home: Path) -> None:
    """Kill every process that works on `home`, until a look at all processes finds none."""
    for fork in _forked.pop(home, []):
        fork.kill()
    while remaining := [
        process
        for process in psutil.process_iter(["cmdline"])
        if str(home) in (process.info["cmdline"] or []) and process.pid != os.getpid()
    ]:
        for process in remaining:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(0.01)


@frozen
class Backend:
    """A running embedded backend: where it listens, the owner's token, its home."""

    url: str
    token: str
    home: Path
    process: subprocess.Popen[bytes] | ForkedProcess


#: Those that were forked and, as far as we know, live.
_forked: dict[Path, list[ForkedProcess]] = defaultdict(list)


def start_backend(home: Path, *arguments: str, anew: bool = False) -> Backend:
    """A process of its own that serves `home`; returns when it listens. `anew`: by a Python that starts for it."""
    home.mkdir(parents=True, exist_ok=True)
    log = home / "test-backend.log"
    log.write_bytes(b"")
    arguments = ("--home", str(home), *arguments)
    process: subprocess.Popen[bytes] | ForkedProcess
    if anew:
        command = [sys.executable, "-m", "arkor.backend", *arguments]
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
    else:
        process = fork_backend(log, arguments)
        _forked[home].append(process)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        try:
            found = json.loads((home / "backend.json").read_text())
        except (FileNotFoundError, ValueError):
            found = {}
        if found.get("pid") == process.pid:
            assert found["protocol"] == PROTOCOL
            return Backend(found["url"], found["token"], home, process)
        time.sleep(0.01)
    raise AssertionError(log.read_text())


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[Backend]:
    """A real backend process whose runs are played by the scripted engine, at `ARKOR_HOME`."""
    started = start_backend(tmp_path / "arkor-home", "--engine", "scripted")
    yield started
    started.process.kill()
    started.process.wait()


@pytest.fixture(scope="module")
def module_backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """The same, once for all tests of a file that leave nothing behind which another one would trip over."""
    started = start_backend(tmp_path_factory.mktemp("lasting") / "arkor-home", "--engine", "scripted")
    yield started
    stop_backend(started.home)
    started.process.wait()


@pytest.fixture
def backend_env(module_backend: Backend, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """That one, at `ARKOR_HOME`."""
    monkeypatch.setenv("ARKOR_HOME", str(module_backend.home))
    return module_backend


@pytest.fixture
def slow_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    """The same, with steps that take a tenth of a second."""
    monkeypatch.setenv("ARKOR_SCRIPTED_STEP_SECONDS", "0.1")
    started = start_backend(tmp_path / "arkor-home", "--engine", "scripted")
    yield started
    started.process.kill()
    started.process.wait()


@pytest.fixture(scope="session")
def starter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the starter model, converted once; concurrent test processes share it.

    Three callers request it at the same time; `conversion.json` above the folder has what each of them got.
    """
    ours = tmp_path_factory.getbasetemp()
    home = (ours.parent if "PYTEST_XDIST_WORKER" in os.environ else ours) / "starter-home"
    home.mkdir(exist_ok=True)
    record, messages = models_folder(home) / "conversion.json", []
    with Lock(home / "conversion.lock"):
        if not record.exists():
            with ThreadPoolExecutor(3) as pool:
                requests = [pool.submit(local_folder, STARTER_MODEL, home, messages.append) for _ in range(3)]
            folders = [request.result() for request in requests]
            record.write_text(json.dumps({"folders": folders, "messages": messages}))
    return models_folder(home) / STARTER_MODEL


def install_starter(home: Path, starter: Path) -> None:
    """Link that folder to where a backend of `home` looks for it."""
    models_folder(home).mkdir(parents=True, mode=0o700)
    (models_folder(home) / STARTER_MODEL).symlink_to(starter)


def install_older_starter(home: Path, starter: Path) -> Path:
    """Give a home the starter model as version 0.1.0 converted it, with numbers in one piece; return its folder."""
    from tokenizers import Tokenizer, pre_tokenizers  # noqa: PLC0415 - for few tests

    folder = models_folder(home) / STARTER_MODEL
    shutil.copytree(starter, folder)
    (folder / "conversion.json").unlink()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
