"""What a run survives: the death of the script that started it, and of the backend that it is watched through."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from arkor import Trainer
from arkor.client.local_backend import find_or_start
from tests.conftest import Backend

pytestmark = pytest.mark.slow  # every test starts processes of its own


SCRIPT = """
from arkor import Trainer

trainer = Trainer(
    name="orphan", model="some-model", dataset={"type": "huggingface", "name": "some/rows"}, max_steps=40, progress=False,
    callbacks={"on_log": lambda log: print(log.job.id, log.step, flush=True)},
)
trainer.wait()
"""


def start_script() -> tuple[subprocess.Popen[str], str]:
    """The script in a process of its own, once its third step was seen; and the id of its run."""
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        job_id, step = line.split()
        if int(step) == 3:
            return process, job_id
    raise AssertionError("the script ended")


def test_a_script_that_is_killed_leaves_its_run_going(slow_backend: Backend) -> None:
    process, job_id = start_script()
    process.kill()
    process.communicate()
    seen: list[int] = []
    attached = Trainer.attach(job_id, callbacks={"on_log": lambda log: seen.append(log.step)}, progress=False)
    assert attached.wait(timeout=60).job.status == "completed"
    assert seen == list(range(1, 41))


def test_its_log_can_be_followed_from_elsewhere(slow_backend: Backend) -> None:
    process, job_id = start_script()
    process.kill()
    process.communicate()
    command = [sys.executable, "-m", "arkor", "logs", job_id, "--follow", "--json"]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    events = [json.loads(line) for line in output.splitlines()]
    assert [event["step"] for event in events if event["type"] == "training.log"] == list(range(1, 41))
    assert events[-1]["type"] == "training.completed"


def test_a_watcher_survives_the_death_of_the_backend(slow_backend: Backend) -> None:
    """The server is killed in mid-run; another one comes up at another port; every event is dispatched once."""
    seen: list[int] = []

    def on_log(log: Any) -> None:
        seen.append(log.step)
        if log.step == 5:
            os.kill(slow_backend.process.pid, signal.SIGKILL)
            slow_backend.process.wait()

    trainer = Trainer(
        name="watched",
        model="some-model",
        dataset={"type": "huggingface", "name": "some/rows"},
        max_steps=30,
        progress=False,
        callbacks={"on_log": on_log},
    )
    assert trainer.wait(timeout=60).job.status == "completed"
    assert seen == list(range(1, 31))
    assert find_or_start().arkor_cloud_api_url != slow_backend.url


def test_a_watcher_survives_the_death_of_the_worker(slow_backend: Backend) -> None:
    """The worker is killed, and so is the one that goes on for it; every step is dispatched once."""
    seen: list[int] = []

    def on_log(log: Any) -> None:
        seen.append(log.step)
        if log.step in (5, 15):
            os.kill(int((slow_backend.home / "runs" / log.job.id / "worker.pid").read_text()), signal.SIGKILL)

    trainer = Trainer(
        name="watched",
        model="some-model",
        dataset={"type": "huggingface", "name": "some/rows"},
        max_steps=30,
        save_steps=2,
        progress=False,
        callbacks={"on_log": on_log},
    )
    assert trainer.wait(timeout=60).job.status == "completed"
    assert seen == list(range(1, 31))


def test_what_ends_with_the_run_is_gone(slow_backend: Backend) -> None:
    """No worker stays behind a run that has ended."""
    trainer = Trainer("short", "some-model", {"type": "huggingface", "name": "some/rows"}, max_steps=2, progress=False)
    trainer.wait(timeout=60)
    folder = slow_backend.home / "runs" / (trainer.job_id or "")
    deadline = time.monotonic() + 30
    while (folder / "worker.pid").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not (folder / "worker.pid").exists()
    assert sorted(path.name for path in folder.iterdir() if path.name != "checkpoints") == [
        "events.jsonl",
        "final",
        "job.json",
        "worker.log",
    ]
