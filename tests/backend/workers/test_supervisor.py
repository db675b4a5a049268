"""Runs under a server that may die at any moment, and so may they."""

from __future__ import annotations

import itertools
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import psutil
import pytest

from arkor.backend.runs.paths import RunFolder, run_folder
from arkor.backend.runs.sse import END
from arkor.files import is_locked
from arkor.protocol.events import now
from tests.backend.caller import CONFIG, Frame, owner
from tests.conftest import Backend, start_backend

Again = Callable[[Backend], Backend]


pytestmark = pytest.mark.slow  # every test starts processes of its own


@pytest.fixture(autouse=True)
def slow_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARKOR_SCRIPTED_STEP_SECONDS", "0.02")


@pytest.fixture
def again() -> Iterator[Again]:
    """Starts another server on the home of one that is dead."""
    with ExitStack() as servers:

        def start(dead: Backend) -> Backend:
            started = start_backend(dead.home, "--engine", "scripted")
            servers.callback(kill, started)
            return started

        yield start


def kill(backend: Backend) -> None:
    backend.process.kill()
    backend.process.wait()


def pid_of(folder: RunFolder) -> int:
    deadline = time.monotonic() + 30
    while (pid := folder.worker_pid()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return pid


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_runs_wait_for_each_other_in_order(backend: Backend) -> None:
    caller = owner(backend)
    jobs = [caller.submit(name=str(number), maxSteps=5) for number in range(3)]
    ended = [caller.until(job, "completed") for job in jobs]
    for earlier, later in itertools.pairwise(ended):
        assert earlier["completedAt"] <= later["startedAt"]


def test_the_next_run_starts_at_once(backend: Backend) -> None:
    caller = owner(backend)
    first, second = caller.submit(maxSteps=20), caller.submit(maxSteps=1)
    assert caller.job(second)["status"] == "queued"
    ended = caller.until(first, "completed")["completedAt"]
    assert caller.until(second, "completed")["startedAt"] >= ended


def test_a_killed_server_is_not_missed(backend: Backend, again: Again) -> None:
    caller = owner(backend)
    running, waiting = caller.submit(maxSteps=100), caller.submit(maxSteps=1)
    caller.until_step(running, 3)
    folder = run_folder(backend.home, running)
    pid = pid_of(folder)
    kill(backend)
    assert is_locked(folder.events)
    second = again(backend)
    caller = owner(second)
    assert caller.job(running)["status"] == "running"
    assert pid_of(folder) == pid
    frames = list(caller.events(running))
    assert [f.data["step"] for f in frames if f.event == "training.log"] == list(range(1, 101))
    assert frames[-2].event == "training.completed"
    assert caller.until(waiting, "completed")


def test_a_run_that_ended_while_no_server_was_there(backend: Backend, again: Again) -> None:
    caller = owner(backend)
    job = caller.submit(maxSteps=20)
    caller.until_step(job, 2)
    pid = pid_of(run_folder(backend.home, job))
    kill(backend)
    while not gone(pid):
        time.sleep(0.01)
    second = again(backend)
    assert owner(second).job(job)["status"] == "completed"


def logged(frames: list[Frame]) -> list[int]:
    return [frame.data["step"] for frame in frames if frame.event == "training.log"]


def test_a_run_whose_worker_died_while_no_server_was_there_goes_on(backend: Backend, again: Again) -> None:
    caller = owner(backend)
    job = caller.submit(maxSteps=30, saveSteps=5)
    caller.until_step(job, 12)
    pid = pid_of(run_folder(backend.home, job))
    kill(backend)
    os.kill(pid, signal.SIGKILL)
    frames = list(owner(again(backend)).events(job))
    (resumed,) = [frame.data for frame in frames if frame.event == "training.resumed"]
    assert resumed["step"] >= 10
    assert "unseen" in resumed["reason"]
    assert logged(frames) == list(range(1, 31))
    assert frames[-2].event == "training.completed"


def test_a_worker_that_is_killed_is_replaced_at_once(backend: Backend) -> None:
    caller = owner(backend)
    job = caller.submit(maxSteps=60, saveSteps=10)
    caller.until_step(job, 15)
    os.kill(pid_of(run_folder(backend.home, job)), signal.SIGKILL)
    frames = list(caller.events(job))
    resumed = next(frame.data for frame in frames if frame.event == "training.resumed")
    assert resumed["step"] in (10, 20)
    assert "SIGKILL" in resumed["reason"]
    assert logged(frames) == list(range(1, 61))
    assert caller.until(job, "completed")["startedAt"] == frames[0].data["timestamp"]


def test_a_machine_that_is_shut_down_costs_nothing(backend: Backend, again: Again) -> None:
    """Every process is asked to leave, in any order; the run goes on when the machine is back."""
    caller = owner(backend)
    job = caller.submit(maxSteps=100, saveSteps=10)
    caller.until_step(job, 15)
    pid = pid_of(run_folder(backend.home, job))
    for victim in (pid, backend.process.pid):
        os.kill(victim, signal.SIGTERM)
    backend.process.wait()
    frames = list(owner(again(backend)).events(job))
    assert logged(frames) == list(range(1, 101))
    assert frames[-2].event == "training.completed"


def test_a_run_that_never_gets_further_is_given_up_and_the_next_one_starts_meanwhile(backend: Backend) -> None:
    caller = owner(backend)
    crashing, next_one = caller.submit(model="scripted/crash"), caller.submit(maxSteps=1)
    failed = caller.until(crashing, "failed")
    for part in ("3 times in a row", "exit code 13", str(run_folder(backend.home, crashing).worker_log)):
        assert part in failed["error"]
    frames = list(caller.events(crashing))
    assert [frame.data["step"] for frame in frames if frame.event == "training.resumed"] == [2, 2]
    assert frames[-2].data["step"] == 2
    assert [artifact["step"] for artifact in frames[-2].data["artifacts"]] == [2]
    first_death = next(frame.data["timestamp"] for frame in frames if frame.event == "training.resumed")
    assert first_death <= caller.until(next_one, "completed")["startedAt"] < failed["completedAt"]


def test_a_run_that_is_killed_again_and_again_is_told_how_to_do_with_less_memory(backend: Backend) -> None:
    caller = owner(backend)
    job = caller.submit(maxSteps=1000, batchSize=4)
    seen: set[int] = set()
    while caller.job(job)["status"] != "failed":
        pid = run_folder(backend.home, job).worker_pid()
        if pid is not None and pid not in seen:
            seen.add(pid)
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.001)
    assert 3 <= len(seen) < 6  # a step may have slipped through
    error = caller.job(job)["error"]
    assert "SIGKILL" in error
    assert "batch_size=2 (it was 4)" in error


def test_a_run_that_gets_further_is_resumed_as_often_as_it_takes(backend: Backend) -> None:
    caller = owner(backend)
    job = caller.submit(maxSteps=100, saveSteps=1)
    for step in (5, 15, 25, 35, 45):
        caller.until_step(job, step)
        os.kill(pid_of(run_folder(backend.home, job)), signal.SIGKILL)
        caller.until_resumed(job, after=step)
    frames = list(caller.events(job))
    assert len([frame for frame in frames if frame.event == "training.resumed"]) == 5
    assert logged(frames) == list(range(1, 101))
    assert frames[-2].event == "training.completed"


def test_a_worker_that_stands_still_is_told_of(backend: Backend) -> None:
    caller = owner(backend)
    job = caller.submit(maxSteps=1000)
    caller.until_step(job, 2)
    assert "stalledSince" not in caller.job(job)
    pid = pid_of(run_folder(backend.home, job))
    os.kill(pid, signal.SIGSTOP)
    stopped = now()
    deadline = time.monotonic() + 30
    while (since := caller.job(job).get("stalledSince")) is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert since <= stopped
    assert caller.job(job)["status"] == "running"
    assert f"run {job} has stalled" in (backend.home / "test-backend.log").read_text()
    os.kill(pid, signal.SIGCONT)
    while "stalledSince" in caller.job(job):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_cancelling_a_running_job(backend: Backend) -> None:
    caller = owner(backend)
    job = caller.submit(maxSteps=1000, saveSteps=1)
    caller.until_step(job, 2)
    pid = pid_of(run_folder(backend.home, job))
    assert caller.cancel(job).status_code == 202
    caller.until(job, "cancelled")
    *_, last, end = caller.events(job)
    assert last.data["step"] < 1000
    assert (last.event, end.event) == ("training.failed", "end")
    assert len(last.data["artifacts"]) >= 2
    while not gone(pid):
        time.sleep(0.01)
    again_ = caller.cancel(job)
    assert again_.status_code == 409
    assert again_.json()["code"] == "already_over"


def test_cancelling_a_queued_job(backend: Backend) -> None:
    caller = owner(backend)
    running, waiting = caller.submit(maxSteps=1000), caller.submit()
    caller.until(running, "running")
    answer = caller.cancel(waiting)
    assert answer.json()["job"]["status"] == "cancelled"
    assert "startedAt" not in answer.json()["job"]
    assert [frame.event for frame in caller.events(waiting)] == ["training.failed", "end"]
    assert caller.job(running)["status"] == "running"
    caller.cancel(running)
    assert caller.call("GET", "/healthz").json()["activeRuns"] in (0, 1)


def test_cancelling_a_run_that_waits_for_another_worker(backend: Backend) -> None:
    caller = owner(backend)
    dead, next_one = caller.submit(maxSteps=1000, saveSteps=1), caller.submit(maxSteps=1000)
    caller.until_step(dead, 3)
    os.kill(pid_of(run_folder(backend.home, dead)), signal.SIGKILL)
    caller.until(next_one, "running")
    assert caller.job(dead)["status"] == "running"
    assert caller.cancel(dead).json()["job"]["status"] == "cancelled"
    assert [frame.event for frame in caller.events(dead)][-3:] == ["training.resumed", "training.failed", "end"]
    assert caller.job(next_one)["status"] == "running"


def test_cancelling_while_the_disk_is_full(backend: Backend) -> None:
    caller = owner(backend)
    job = caller.submit(maxSteps=1000)
    caller.until_step(job, 2)
    server = backend.process.pid
    whole = resource.prlimit(server, resource.RLIMIT_FSIZE)
    resource.prlimit(server, resource.RLIMIT_FSIZE, (0, whole[1]))
    assert caller.cancel(job).status_code == 202
    assert caller.until(job, "cancelled")
    assert caller.call("GET", "/healthz").json()["activeRuns"] == 1
    resource.prlimit(server, resource.RLIMIT_FSIZE, whole)
    deadline = time.monotonic() + 30
    while caller.call("GET", "/healthz").json()["activeRuns"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_cancelling_at_the_very_start(backend: Backend) -> None:
    caller = owner(backend)
    for pause in (0, 0.02, 0.05, 0.1, 0.15):
        job = caller.submit(maxSteps=1000)
        time.sleep(pause)
        assert caller.cancel(job).status_code == 202
        caller.until(job, "cancelled")
    assert caller.until(caller.submit(maxSteps=1), "completed")


@pytest.mark.slow
def test_a_worker_that_does_not_listen_is_killed(backend: Backend) -> None:
    caller = owner(backend)
    job = caller.submit(maxSteps=1000)
    caller.until_step(job, 2)
    pid = pid_of(run_folder(backend.home, job))
    os.kill(pid, signal.SIGSTOP)
    caller.cancel(job)
    caller.until(job, "cancelled")
    assert gone(pid)


def test_a_cancellation_survives_the_server(backend: Backend, again: Again) -> None:
    caller = owner(backend)
    job = caller.submit(maxSteps=1000)
    caller.until_step(job, 2)
    pid = pid_of(run_folder(backend.home, job))
    os.kill(pid, signal.SIGSTOP)
    caller.cancel(job)
    kill(backend)
    os.kill(pid, signal.SIGKILL)
    second = again(backend)
    assert owner(second).until(job, "cancelled")


def test_queued_jobs_survive_the_server(backend: Backend, again: Again) -> None:
    caller = owner(backend)
    jobs = [caller.submit(maxSteps=10) for _ in range(3)]
    kill(backend)
    second = again(backend)
    for job in jobs:
        assert owner(second).until(job, "completed")


def test_a_run_whose_folder_vanished_does_not_stop_the_queue(backend: Backend) -> None:
    caller = owner(backend)
    running, waiting, next_one = caller.submit(maxSteps=30), caller.submit(), caller.submit(maxSteps=1)
    run_folder(backend.home, waiting).remove()
    caller.until(running, "completed")
    caller.until(next_one, "completed")
    assert "missing or damaged" in caller.job(waiting)["error"]
    assert [frame.event for frame in caller.events(waiting)] == ["end"]


def test_a_damaged_log_does_not_stop_the_queue(backend: Backend, again: Again) -> None:
    caller = owner(backend)
    job = caller.submit(maxSteps=1000)
    caller.until_step(job, 1)
    folder = run_folder(backend.home, job)
    kill(backend)
    os.kill(pid_of(folder), signal.SIGKILL)
    folder.events.write_bytes(b"what is this\n\xff\n")
    second = again(backend)
    caller = owner(second)
    assert caller.until(caller.submit(maxSteps=1), "completed")
    assert "missing or damaged" in caller.job(job)["error"]
    assert caller.call("GET", f"/v1/jobs/{job}/events/stream").content.endswith(END)


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="fills the disk by a Linux limit")
def test_a_disk_that_is_full_for_a_while(backend: Backend) -> None:
    caller = owner(backend)
    job = caller.submit(maxSteps=50)
    caller.until_step(job, 2)
    server, pid = backend.process.pid, pid_of(run_folder(backend.home, job))
    whole = resource.prlimit(server, resource.RLIMIT_FSIZE)
    resource.prlimit(server, resource.RLIMIT_FSIZE, (0, whole[1]))
    answer = caller.call("POST", "/v1/jobs", json={"name": "n", "config": CONFIG})
    assert (answer.status_code, answer.json()["code"]) == (507, "no_space")
    assert str(backend.home) in answer.json()["error"]
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.3)
    assert caller.call("GET", "/healthz").json()["activeRuns"] == 1
    resource.prlimit(server, resource.RLIMIT_FSIZE, whole)
    assert caller.until(job, "completed")
    assert caller.until(caller.submit(maxSteps=1), "completed")


def test_the_secret_is_gone_when_a_worker_dies(backend: Backend) -> None:
    caller = owner(backend)
    source = {"type": "blob", "url": "https://example.com/rows.jsonl", "token": "hush-hush"}
    job = caller.submit(model="scripted/crash", datasetSource=source)
    folder = run_folder(backend.home, job)
    assert "hush-hush" in folder.secret.read_text()
    assert folder.secret.stat().st_mode & 0o777 == 0o600
    caller.until(job, "failed")
    deadline = time.monotonic() + 30
    while folder.secret.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for file in backend.home.rglob("*"):
        assert not file.is_file() or b"hush-hush" not in file.read_bytes()
