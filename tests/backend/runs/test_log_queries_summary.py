"""Where a run stands, as the list of runs has it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from arkor.backend.runs.event_log import LogWriter
from arkor.backend.runs.log_queries import summary
from arkor.protocol.events import (
    CheckpointSaved,
    Event,
    TrainingCompleted,
    TrainingLog,
    TrainingPreparing,
    TrainingStarted,
)
from tests.backend.caller import Caller

JOB, THEN = "job", "2026-03-01T14:00:00.000Z"


def written(folder: Path, *events: Event) -> Path:
    path = folder / "events.jsonl"
    with LogWriter(path) as log:
        for event in events:
            log.append(event)
    return path


def test_of_a_run_that_has_not_begun(tmp_path: Path) -> None:
    assert summary(tmp_path / "events.jsonl") == {}
    assert summary(written(tmp_path, TrainingPreparing(JOB, THEN, "Loading"))) == {}


def test_the_last_of_each(tmp_path: Path) -> None:
    log = written(
        tmp_path,
        TrainingStarted(JOB, THEN, 60),
        TrainingLog(JOB, THEN, 1, loss=2.5),
        TrainingLog(JOB, THEN, 2, loss=1.5),
        TrainingLog(JOB, THEN, 2, eval_loss=9.0),
        CheckpointSaved(JOB, THEN, 2),
        TrainingCompleted(JOB, THEN),
    )
    assert summary(log) == {"step": 2, "totalSteps": 60, "lastLoss": 1.5}


@pytest.mark.parametrize(("value", "word"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")])
def test_a_loss_that_is_none(tmp_path: Path, value: float, word: str) -> None:
    log = written(tmp_path, TrainingLog(JOB, THEN, 1, loss=2.5), TrainingLog(JOB, THEN, 2, loss=value))
    assert summary(log) == {"step": 2, "lastLoss": None, "nonFinite": {"lastLoss": word}}


def test_it_grows_with_the_log_and_passes_over_a_torn_line(tmp_path: Path) -> None:
    log = written(tmp_path, TrainingStarted(JOB, THEN, 60), TrainingLog(JOB, THEN, 1, loss=2.5))
    assert summary(log)["step"] == 1
    written(tmp_path, TrainingLog(JOB, THEN, 2, loss=2.25))
    assert summary(log) == {"step": 2, "totalSteps": 60, "lastLoss": 2.25}
    with log.open("ab") as file:
        file.write(b'{"type":"training.log","jobId":"job","times')
    assert summary(log)["step"] == 2


def test_a_long_end_and_a_long_beginning_hide_nothing(tmp_path: Path) -> None:
    many = tuple({"kind": "checkpoint", "step": step, "path": f"checkpoints/{step}"} for step in range(1000))
    log = written(
        tmp_path,
        *[TrainingPreparing(JOB, THEN, "x" * 1000) for _ in range(20)],
        TrainingStarted(JOB, THEN, 60),
        TrainingLog(JOB, THEN, 60, loss=0.5),
        TrainingCompleted(JOB, THEN, artifacts=many),
    )
    assert log.stat().st_size > 64 * 1024
    assert summary(log) == {"step": 60, "totalSteps": 60, "lastLoss": 0.5}


def test_the_routes_have_it(caller: Caller) -> None:
    job = caller.submit(maxSteps=7)
    caller.until(job, "completed")
    listed = caller.call("GET", "/v1/jobs", params=caller.scope).json()["jobs"][0]
    shown = caller.call("GET", f"/v1/jobs/{job}", params=caller.scope).json()["job"]
    for answer in (listed, shown):
        assert (answer["step"], answer["totalSteps"]) == (7, 7)
        assert answer["lastLoss"] == pytest.approx(2 * 0.9**7)
