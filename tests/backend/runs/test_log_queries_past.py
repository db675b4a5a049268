"""What a worker that resumes finds in its log is what whoever reads every line of it finds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arkor.backend.runs.event_log import LogCorrupted, LogWriter
from arkor.backend.runs.log_queries import NOTHING_LOGGED, log_position, read_resume_point
from arkor.backend.runs.paths import RunFolder
from arkor.protocol.best_checkpoint import BestCheckpointTracker
from arkor.protocol.events import CheckpointSaved, Event, TrainingLog, TrainingPreparing, TrainingStarted, decode_event
from arkor.protocol.jobs import Artifact

LOSSES = st.none() | st.floats(0, 9) | st.sampled_from([float("nan"), float("inf")])


@st.composite
def logs(draw: st.DrawFn) -> tuple[list[Event], set[int]]:
    """The events of a run up to some moment, and the checkpoints that are still there."""
    events: list[Event] = [TrainingPreparing("r", "", 'Loading\n{"type":"training.log","step":9}')]
    events += [TrainingStarted("r", "", 9)] if draw(st.booleans()) else []
    there = set()
    for step in range(1, draw(st.integers(1, 12))):
        events += [TrainingLog("r", "", step, loss)] if (loss := draw(LOSSES)) is not None else []
        evaluated = [TrainingLog("r", "", step, None, loss)] if (loss := draw(LOSSES)) is not None else []
        saved = [CheckpointSaved("r", "", step, (Artifact("checkpoint", step, str(step), 1),))]
        saved = saved if draw(st.booleans()) else []
        events += draw(st.permutations([*evaluated, *saved]))
        if saved and draw(st.booleans()):
            there.add(step)
    return events, there


@given(run=logs())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_is_what_every_line_says(tmp_path: Path, run: tuple[list[Event], set[int]]) -> None:
    events, there = run
    folder = RunFolder(tmp_path)
    folder.events.unlink(missing_ok=True)
    shutil.rmtree(folder.checkpoints, ignore_errors=True)
    for step in there:
        folder.checkpoint(step).mkdir(parents=True)
    with LogWriter(folder.events) as log:
        for event in events:
            log.append(event)

    tracker, last, saved = BestCheckpointTracker(), NOTHING_LOGGED, {}
    for line in folder.events.read_bytes().splitlines():
        event = decode_event(json.loads(line))
        if isinstance(event, TrainingLog):
            tracker.log(event.step, event.loss, event.eval_loss)
            last = max(last, log_position(event))
        elif isinstance(event, CheckpointSaved):
            tracker.checkpoint(event.step)
            saved[event.step] = event.artifacts
    resume_point = read_resume_point(folder)
    assert resume_point.started == any(isinstance(event, TrainingStarted) for event in events)
    assert (resume_point.last, resume_point.saved) == (last, saved)
    for one in (tracker, resume_point.tracker):  # and the checkpoint that comes next compares as it would have
        one.log(50, 1.0, None)
        one.checkpoint(50)
    for metric in ("loss", "eval_loss"):
        assert resume_point.tracker.best(metric, {*there, 50}) == tracker.best(metric, {*there, 50})


def test_nothing_yet(tmp_path: Path) -> None:
    for _ in range(2):
        resume_point = read_resume_point(RunFolder(tmp_path))
        assert (resume_point.started, resume_point.last, resume_point.saved) == (False, NOTHING_LOGGED, {})
        RunFolder(tmp_path).events.touch()


def test_a_torn_line_is_none(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with LogWriter(folder.events) as log:
        log.append(TrainingLog("r", "", 1, 1.0))
    with folder.events.open("ab") as file:
        file.write(b'{"type":"training.log","jobId":"r","timestamp":"","step":2')
    assert read_resume_point(folder).last == (1, False)


@pytest.mark.parametrize(
    "line", [b'{"type":"training.log", no\n', b'{"type":"training.log","timestamp":"","step":"x"}\n']
)
def test_a_line_that_is_needed_and_damaged_is_told_of(tmp_path: Path, line: bytes) -> None:
    folder = RunFolder(tmp_path)
    folder.events.write_bytes(line)
    with pytest.raises(LogCorrupted):
        read_resume_point(folder)
