"""A worker by itself: a run's folder in, a log with an end out, with no server anywhere."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from arkor.backend.runs.event_log import LogWriter, read_events, read_status
from arkor.backend.runs.paths import RunFolder, create_run, prepare
from arkor.backend.workers.worker import EXIT_LOG_HELD, EXIT_TERMINATED, submission_time
from arkor.files import is_locked
from arkor.protocol.jobs import JobStatus

SOURCE = {"type": "huggingface", "name": "rows"}


def make_run(tmp_path: Path, token: str | None = None, **config: Any) -> RunFolder:
    home = tmp_path / "home"
    prepare(home)
    job = {"id": "run-1", "name": "a run", "config": {"model": "m", "datasetSource": SOURCE, **config}}
    return create_run(home, job, token)


def start(folder: RunFolder) -> subprocess.Popen[bytes]:
    home = folder.path.parent.parent
    command = [sys.executable, "-m", "arkor.backend.workers.worker", str(folder.path), "--home", str(home)]
    with folder.worker_log.open("wb") as output:
        return subprocess.Popen([*command, "--engine", "scripted"], stdout=output, stderr=output, cwd=folder.path)


def run_worker_process(folder: RunFolder) -> int:
    with start(folder) as process:
        return process.wait(timeout=30)


def logged(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for _, line in read_events(folder.events, 0, 10**6)]


def wait_for_step(folder: RunFolder, step: int) -> None:
    deadline = time.monotonic() + 30
    while not any(event.get("step", 0) >= step for event in logged(folder)):
        assert time.monotonic() < deadline, folder.worker_log.read_text()
        time.sleep(0.01)


def test_the_date_of_a_run_is_that_of_its_submission() -> None:
    """It stays the same when the run is resumed on another day."""
    moment = submission_time({"createdAt": "2025-05-09T12:00:00.000Z"})
    assert moment is not None
    assert moment.timestamp() == 1746792000
    assert submission_time({"createdAt": "soon"}) is None
    assert submission_time({}) is None


def test_a_run_from_start_to_end(tmp_path: Path) -> None:
    folder = make_run(tmp_path, maxSteps=5, saveSteps=2, evalSteps=5, learningRate=0.01)
    assert run_worker_process(folder) == 0
    events = logged(folder)
    kinds = [event["type"].split(".")[1] for event in events]
    assert kinds == ["preparing", "started", "log", "log", "saved", "log", "log", "saved", "log", "log", "completed"]
    assert events[1]["totalSteps"] == 5
    assert [event["loss"] for event in events if "loss" in event] == [2.0 * 0.9**step for step in range(1, 6)]
    assert [event["evalLoss"] for event in events if "evalLoss" in event] == [2.0 * 0.9**5 * 1.1]
    assert {event["jobId"] for event in events} == {"run-1"}
    last = events[-1]
    loss = 2.0 * 0.9**5
    assert last["metrics"] == {"steps": 5, "totalSteps": 5, "loss": loss, "finalLoss": loss}
    assert [(a["kind"], a["step"], a["path"]) for a in last["artifacts"]] == [
        ("checkpoint", 2, "checkpoints/2"),
        ("checkpoint", 4, "checkpoints/4"),
        ("final", 5, "final"),
    ]
    for artifact in last["artifacts"]:
        files = [file for file in (folder.path / artifact["path"]).iterdir() if file.is_file()]
        assert {file.name for file in files} == {"adapter_config.json", "adapter_model.safetensors"}
        assert artifact["bytes"] == sum(file.stat().st_size for file in files)
    assert {path.name for path in folder.checkpoints.iterdir()} == {"2", "4"}


def test_what_only_a_living_worker_needs_is_gone_at_the_end(tmp_path: Path) -> None:
    folder = make_run(tmp_path, token="a secret")
    assert folder.secret.stat().st_mode & 0o777 == 0o600
    assert run_worker_process(folder) == 0
    assert not folder.secret.exists()
    assert not folder.pid.exists()
    assert not is_locked(folder.events)


def test_a_diverging_run_is_no_crash(tmp_path: Path) -> None:
    folder = make_run(tmp_path, learningRate=1e6, maxSteps=2)
    assert run_worker_process(folder) == 0
    events = logged(folder)
    assert all(e["loss"] is None and e["nonFinite"] == {"loss": "nan"} for e in events if e["type"] == "training.log")
    assert events[-1]["type"] == "training.completed"
    assert events[-1]["metrics"]["loss"] is None


def test_what_a_person_can_mend_is_their_sentence(tmp_path: Path) -> None:
    folder = make_run(tmp_path, model="scripted/fail")
    assert run_worker_process(folder) == 0
    assert logged(folder)[-1]["error"] == "This model fails by design; name another one."
    assert "Traceback" not in folder.worker_log.read_text()


def test_what_nobody_foresaw_is_a_sentence_too(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    (folder.path / ".final.partial").write_text("a file in the way")
    assert run_worker_process(folder) == 0
    error = logged(folder)[-1]["error"]
    assert "Error: " in error
    assert str(folder.worker_log) in error
    assert "Traceback" in folder.worker_log.read_text()


def test_cancelling_keeps_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARKOR_SCRIPTED_STEP_SECONDS", "0.05")
    folder = make_run(tmp_path, maxSteps=1000, saveSteps=1)
    with start(folder) as process:
        wait_for_step(folder, 2)
        assert is_locked(folder.events)
        assert folder.worker_pid() == process.pid
        folder.cancelled.touch()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    last = logged(folder)[-1]
    assert (last["type"], last["error"]) == ("training.failed", "Job cancelled")
    assert last["step"] >= 2
    assert [artifact["step"] for artifact in last["artifacts"]] == [last["step"] - 1, last["step"]]


def test_a_machine_that_is_shut_down_cancels_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARKOR_SCRIPTED_STEP_SECONDS", "0.05")
    folder = make_run(tmp_path, maxSteps=20, saveSteps=5)
    with start(folder) as process:
        wait_for_step(folder, 6)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == EXIT_TERMINATED
    assert logged(folder)[-1]["type"] == "training.log"
    assert run_worker_process(folder) == 0
    assert [line["step"] for line in logged(folder) if line["type"] == "training.log"] == list(range(1, 21))


def test_a_second_worker_keeps_out(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    with LogWriter(folder.events):
        assert run_worker_process(folder) == EXIT_LOG_HELD
    assert logged(folder) == []


def test_a_run_that_has_ended_is_not_run_again(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    assert run_worker_process(folder) == 0
    before = folder.events.read_bytes()
    assert run_worker_process(folder) == 0
    assert folder.events.read_bytes() == before


def test_a_run_folder_can_be_copied_away(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    assert run_worker_process(folder) == 0
    subprocess.run(["cp", "-r", str(folder.path), str(tmp_path / "kept")], check=True)
    assert read_status(tmp_path / "kept" / "events.jsonl").status == JobStatus.COMPLETED
