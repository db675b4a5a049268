"""A backend of another version: a copy of the package with a changed version."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import arkor
from arkor.client.connect import connect
from arkor.client.local_backend import find_or_start
from arkor.errors import BackendUnavailable
from arkor.protocol.jobs import JobStatus
from arkor.settings import PROTOCOL, VERSION, arkor_home
from arkor.trainer.trainer import Trainer

pytestmark = pytest.mark.slow  # every test starts processes

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """`start_another(version, protocol)` starts a server of that version on our home."""
    started: list[subprocess.Popen[bytes]] = []

    def start(version: str, protocol: int = PROTOCOL) -> subprocess.Popen[bytes]:
        package = tmp_path / "another" / "arkor"
        shutil.copytree(Path(arkor.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
        settings = package / "settings.py"
        text = settings.read_text().replace(f'VERSION = "{VERSION}"', f'VERSION = "{version}"')
        settings.write_text(re.sub(r"^PROTOCOL = \d+", f"PROTOCOL = {protocol}", text, flags=re.M))
        command = [sys.executable, "-m", "arkor.backend", "--home", str(arkor_home()), "--engine", "scripted"]
        environment = {**os.environ, "PYTHONPATH": str(package.parent), "ARKOR_SCRIPTED_STEP_SECONDS": "0.05"}
        process = subprocess.Popen(command, cwd=package.parent, env=environment, stderr=subprocess.DEVNULL)
        started.append(process)
        threading.Thread(target=process.wait, daemon=True).start()  # or it would remain a zombie
        deadline = time.monotonic() + 30
        while not (arkor_home() / "backend.json").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def listing() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((arkor_home() / "backend.json").read_text())
    return found


def old_friend() -> arkor.CloudApiClient:
    """A client without a version check, like one of the same version."""
    url, token = listing()["url"], listing()["token"]
    credentials = arkor.AnonymousCredentials(token, "a", url, "local")
    return arkor.CloudApiClient(url, credentials, scope=arkor.Scope("local", "default"))


def submit(steps: int) -> str:
    config = arkor.JobConfig("scripted/model", arkor.HuggingFaceDataset("rows"), max_steps=steps, save_steps=10)
    return old_friend().create_job("a run", config).id


def watch(job_id: str) -> tuple[list[int], str]:
    """Return the steps that a callback receives and the result."""
    steps: list[int] = []
    result = Trainer.attach(job_id, callbacks={"on_log": lambda log: steps.append(log.step)}).wait(60)
    return steps, str(result.job.status)


def test_an_older_backend_finishes_its_run_and_is_replaced(start_another: Start) -> None:
    old = start_another("0.0.1")
    job_id = submit(60)
    assert listing()["version"] == "0.0.1"
    assert watch(job_id) == (list(range(1, 61)), "completed")
    deadline = time.monotonic() + 30
    while listing()["version"] != VERSION:  # the run may count as active for a moment
        assert time.monotonic() < deadline
        assert connect().list_jobs()[0].status == JobStatus.COMPLETED
    assert old.wait(20) == 0
    assert watch(job_id) == (list(range(1, 61)), "completed")


def test_the_run_of_a_dead_older_backend_is_resumed(start_another: Start) -> None:
    old = start_another("0.0.1")
    job_id = submit(100)
    first = Trainer.attach(job_id, callbacks={"on_log": lambda log: old.kill() if log.step == 5 else None})
    assert str(first.wait(60).job.status) == "completed"
    assert listing()["version"] == VERSION
    assert watch(job_id) == (list(range(1, 101)), "completed")


@pytest.mark.parametrize("newer", [False, True])
def test_an_incompatible_busy_backend_is_named(start_another: Start, newer: bool) -> None:
    """Nothing is sent to it, and its run continues."""
    other = start_another("99.0" if newer else "0.0.1", PROTOCOL + 1 if newer else PROTOCOL - 1)
    before = (arkor_home() / "backend.json").read_bytes()
    caller, job_id = old_friend(), submit(60)
    with pytest.raises(BackendUnavailable, match="newer than this arkor" if newer else "wait for them, or cancel them"):
        find_or_start()
    assert (arkor_home() / "backend.json").read_bytes() == before
    while not (status := caller.get_job(job_id).status).terminal:
        time.sleep(0.1)
    assert status == JobStatus.COMPLETED
    assert other.poll() is None
