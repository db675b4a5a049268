"""What a deployment answers with is there for as long as it does, however its run goes on."""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from arkor.backend.runs.checkpoints import CheckpointPins, prune, remove_expired
from arkor.backend.runs.paths import RunFolder, prepare, run_folder
from arkor.protocol.best_checkpoint import BestCheckpointTracker
from arkor.protocol.deployments import Deployment
from tests.backend.caller import Caller, owner
from tests.conftest import Backend, start_backend, stop_backend

JOB = "0123456789abcdef0123456789abcdef"
BASE = {"kind": "base_model", "baseModel": "any/model"}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """With checkpoints of the steps 1 to 6."""
    prepare(tmp_path)
    folder = run_folder(tmp_path, JOB)
    for step in range(1, 7):
        folder.checkpoint(step).mkdir(parents=True)
    return folder


def checkpoint(step: int, job: str = JOB) -> dict[str, Any]:
    return {"kind": "adapter", "adapter": {"kind": "checkpoint", "jobId": job, "step": step}}


def deployment(id_: str, target: dict[str, Any]) -> Deployment:
    return Deployment(id_, "bot", target, "none")


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir())


def test_who_thins_out_spares_what_is_pinned(tmp_path: Path, run: RunFolder) -> None:
    CheckpointPins(tmp_path).restore(
        [deployment("a", checkpoint(2)), deployment("b", checkpoint(2)), deployment("c", BASE)]
    )
    assert run.pinned_steps() == {2}
    prune(run, range(1, 7), BestCheckpointTracker(), 1)
    assert steps(run.checkpoints) == [2, 6]
    remove_expired(run, 0)
    assert not run.retired.exists()


def test_a_checkpoint_that_is_retired_already_stays_where_it_is(tmp_path: Path, run: RunFolder) -> None:
    prune(run, range(1, 7), BestCheckpointTracker(), 1)
    checkpoint_pins = CheckpointPins(tmp_path)
    with checkpoint_pins.pin_moved("a", lambda: None, checkpoint(3)):
        pass
    for folder in run.retired.iterdir():
        os.utime(folder, (0, 0))
    remove_expired(run)
    assert steps(run.retired) == [3]
    with checkpoint_pins.pin_moved("a", lambda: deployment("a", checkpoint(3)), None):
        pass
    assert steps(run.retired) == []


def test_the_last_deployment_takes_the_pin_away(tmp_path: Path, run: RunFolder) -> None:
    checkpoint_pins = CheckpointPins(tmp_path)
    before = {name: deployment(name, checkpoint(2)) for name in "ab"}
    checkpoint_pins.restore(before.values())
    with checkpoint_pins.pin_moved("a", lambda: before["a"], checkpoint(4)):
        assert run.pinned_steps() == {2, 4}
    assert run.pinned_steps() == {2, 4}
    with checkpoint_pins.pin_moved("b", lambda: before["b"], BASE):
        pass
    assert run.pinned_steps() == {4}


def test_a_change_that_fails_changes_no_pin(tmp_path: Path, run: RunFolder) -> None:
    checkpoint_pins = CheckpointPins(tmp_path)
    before = deployment("a", checkpoint(2))
    checkpoint_pins.restore([before])
    for after in (checkpoint(4), checkpoint(2), None):
        with pytest.raises(LookupError), checkpoint_pins.pin_moved("a", lambda: before, after):
            raise LookupError
        assert run.pinned_steps() == {2}


def test_what_is_pinned_while_it_is_cleared_away_is_there_or_was_seen_to_be_gone(
    tmp_path: Path, run: RunFolder
) -> None:
    checkpoint_pins = CheckpointPins(tmp_path)
    run.retired.mkdir()
    for round_ in range(200):
        folder = run.retired / str(round_)
        folder.mkdir()
        os.utime(folder, (0, 0))
        clearing = threading.Thread(target=remove_expired, args=(run,))
        clearing.start()
        with checkpoint_pins.pin_moved("a", lambda: None, checkpoint(round_)):
            seen = folder.exists()
        clearing.join()
        assert folder.exists() or not seen
        shutil.rmtree(run.pins)


# With a server, a worker and whoever asks


def deploy(caller: Caller, target: dict[str, Any]) -> dict[str, Any]:
    body = {"slug": f"bot-{uuid4().hex[:12]}", "target": target, "authMode": "none"}
    answer = caller.call("POST", "/v1/endpoints", json=body)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()["deployment"]
    return made


def ask(caller: Caller, made: dict[str, Any]) -> tuple[int, str]:
    body = {"messages": [{"role": "user", "content": "Hello"}]}
    answer = caller.call("POST", f"/e/{made['slug']}/v1/chat/completions", json=body)
    return answer.status_code, answer.text


@pytest.fixture
def slow_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    monkeypatch.setenv("ARKOR_SCRIPTED_STEP_SECONDS", "0.05")
    monkeypatch.setenv("ARKOR_KEEP_CHECKPOINTS", "1")
    backend = start_backend(tmp_path / "arkor-home", "--engine", "scripted")
    yield backend
    stop(backend)


def stop(backend: Backend) -> None:
    stop_backend(backend.home)
    backend.process.wait()


@pytest.mark.slow
def test_an_endpoint_answers_with_an_early_checkpoint_of_a_run_that_goes_on(slow_backend: Backend) -> None:
    caller = owner(slow_backend)
    job = caller.submit(maxSteps=40, saveSteps=1)
    caller.until_step(job, 4)
    made = deploy(caller, checkpoint(2, job))
    run = run_folder(slow_backend.home, job)
    worker = run.worker_pid()
    assert worker is not None
    os.kill(worker, 9)  # the one that resumes thins out, too
    caller.until(job, "completed")
    there = {int(path.name) for where in (run.checkpoints, run.retired) for path in where.glob("[0-9]*")}
    assert 2 in there
    assert 3 not in there
    assert ask(caller, made)[0] == 200

    changed = caller.call("PATCH", f"/v1/endpoints/{made['id']}", json={"target": checkpoint(3, job)})
    assert changed.status_code == 404
    assert "no checkpoint of step 3" in changed.json()["error"]
    assert run.pinned_steps() == {2}
    assert caller.call("DELETE", f"/v1/endpoints/{made['id']}").status_code == 204
    assert run.pinned_steps() == set()


@pytest.mark.slow
def test_pins_outlive_the_database_and_are_made_up_for(slow_backend: Backend) -> None:
    caller = owner(slow_backend)
    job = caller.submit(maxSteps=3, saveSteps=1)
    caller.until(job, "completed")
    made = deploy(caller, checkpoint(2, job))
    stop(slow_backend)
    run = run_folder(slow_backend.home, job)
    shutil.rmtree(run.pins)  # as an arkor of before left it
    again = start_backend(slow_backend.home, "--engine", "scripted")
    assert ask(owner(again), made)[0] == 200
    assert run.pinned_steps() == {2}
    stop(again)

    with closing(sqlite3.connect(slow_backend.home / "arkor.db")) as database, database:
        database.execute("DELETE FROM deployments")
    once_more = start_backend(slow_backend.home, "--engine", "scripted")
    owner(once_more)  # it answers: it has begun
    assert run.pinned_steps() == {2}
    stop(once_more)


@pytest.mark.slow
def test_a_checkpoint_that_is_gone_all_the_same(slow_backend: Backend) -> None:
    caller = owner(slow_backend)
    job = caller.submit(maxSteps=3, saveSteps=1)
    caller.until(job, "completed")
    made = deploy(caller, checkpoint(3, job))
    assert ask(caller, made)[0] == 200
    shutil.rmtree(run_folder(slow_backend.home, job).checkpoint(3))
    status, text = ask(caller, made)
    assert status == 404
    assert "no longer exists. Its owner can choose another one." in text
    assert "no checkpoint of step 3" in (slow_backend.home / "test-backend.log").read_text()
