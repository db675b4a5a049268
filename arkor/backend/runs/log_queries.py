"""Queries on the event log of a run: its progress, the point to resume from, a summary."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from attrs import Factory, define

from arkor.backend.runs.checkpoints import resume_step
from arkor.backend.runs.event_log import LogCorrupted, decode_line
from arkor.backend.runs.log_index import LogIndex, LogLine, open_log_index
from arkor.backend.runs.paths import RunFolder
from arkor.protocol.best_checkpoint import BestCheckpointTracker
from arkor.protocol.events import CheckpointSaved, Event, TrainingLog, TrainingStarted, decode_event
from arkor.protocol.jobs import Artifact

# Progress


@define
class LogProgress:
    """The progress of a run.

    `saved` has the artifacts of each checkpoint by its step, in wire format; `stalled_resumptions`
    counts the resumptions since the run last reached a new step.
    """

    step: int | None = None
    stalled_resumptions: int = 0
    saved: dict[int, list[Any]] = Factory(dict)

    def artifacts(self, folder: RunFolder) -> tuple[Any, ...]:
        """Return the artifacts of the checkpoints that still exist."""
        present = [step for step in sorted(self.saved) if folder.checkpoint(step).is_dir()]
        return tuple(artifact for step in present for artifact in self.saved[step])

    def resume_step(self, folder: RunFolder) -> int:
        """Return the step that a worker would resume from; 0 is the start."""
        return resume_step(folder, self.saved) or 0


def read_log_progress(folder: RunFolder) -> LogProgress:
    """Return the progress of the run in this folder. Raise `LogCorrupted`."""
    progress = LogProgress()
    with open_log_index(folder.events) as log:
        progress.step = _step_before(log, None)
        for line in log.events_of_type("checkpoint.saved"):
            if (step := _step(line)) is not None:
                progress.saved[step] = line.event.get("artifacts") or []
        end = None
        while resumed := log.last_of_type("training.resumed", end):
            if _step_before(log, resumed.offset) != progress.step:
                break
            progress.stalled_resumptions += 1
            end = resumed.offset
    return progress


def _step_before(log: LogIndex, end: int | None) -> int | None:
    """Return the last step that was logged before a byte offset; steps never decrease."""
    lines = (log.last_of_type("training.log", end), log.last_of_type("checkpoint.saved", end))
    return max((step for line in lines if line and (step := _step(line)) is not None), default=None)


def _step(line: LogLine) -> int | None:
    step = line.event.get("step")
    return step if isinstance(step, int) else None


# Resuming


#: The position before all metrics.
NOTHING_LOGGED = (-1, False)


def log_position(step: int, eval_loss: float | None) -> tuple[int, bool]:
    """Return the sort key of a line of metrics: by step, training before evaluation."""
    return step, eval_loss is not None


@define
class ResumePoint:
    """The state of a run that a new worker continues.

    `last` is the position of the last line of metrics, `saved` has the artifacts of each checkpoint
    by its step, and `tracker` compares the checkpoints that still exist.
    """

    started: bool = False
    last: tuple[int, bool] = NOTHING_LOGGED
    saved: dict[int, tuple[Artifact, ...]] = Factory(dict)
    tracker: BestCheckpointTracker = Factory(BestCheckpointTracker)


def read_resume_point(run: RunFolder) -> ResumePoint:
    """Return the point that this run is resumed from. Raise `LogCorrupted`."""
    resume_point = ResumePoint()
    with open_log_index(run.events) as log:
        resume_point.started = log.last_of_type("training.started") is not None
        if (line := log.last_of_type("training.log")) is not None:
            metrics = _metrics(line)
            resume_point.last = log_position(metrics.step, metrics.eval_loss)
        checkpoints = [
            (line.offset, cast("CheckpointSaved", _decoded(line))) for line in log.events_of_type("checkpoint.saved")
        ]
        resume_point.saved = {event.step: tuple(event.artifacts or ()) for _, event in checkpoints}
        present = {step for step in resume_point.saved if run.checkpoint(step).is_dir()}
        _track_checkpoints(resume_point.tracker, log, [(begin, event.step) for begin, event in checkpoints], present)
    return resume_point


def _track_checkpoints(
    tracker: BestCheckpointTracker, log: LogIndex, checkpoints: Sequence[tuple[int, int]], present: Collection[int]
) -> None:
    """Track the checkpoints that are present; `checkpoints` are (offset of its line, step)."""
    before = 0
    for begin, step in checkpoints:
        if step in present:
            _track_losses(tracker, log, before, begin)
            tracker.checkpoint(step)
            _track_evaluation(tracker, log, begin, step)
        before = begin
    _track_losses(tracker, log, before, None)


def _track_losses(tracker: BestCheckpointTracker, log: LogIndex, begin: int, end: int | None) -> None:
    for line in log.events_of_type("training.log", begin, end):
        metrics = _metrics(line)
        tracker.log(metrics.step, metrics.loss, metrics.eval_loss)


def _track_evaluation(tracker: BestCheckpointTracker, log: LogIndex, begin: int, step: int) -> None:
    """Add the evaluation at this step that was logged after the checkpoint."""
    for line in log.events_of_type("training.log", begin):
        metrics = _metrics(line)
        if metrics.step > step:
            return
        tracker.log(metrics.step, None, metrics.eval_loss)


def _metrics(line: LogLine) -> TrainingLog:
    return cast("TrainingLog", _decoded(line))


def _decoded(line: LogLine) -> Event | None:
    try:
        return decode_event(line.event)
    except ValueError as error:
        raise LogCorrupted(f"{error!r} in the line that begins at byte {line.offset}") from error


# Summary

#: Bytes to read at either end of the log; the larger size if the smaller one is not enough.
_READ_SIZES = (4 * 1024, 256 * 1024)
_CACHE_SIZE = 8192


def summary(log: Path) -> dict[str, Any]:
    """Return `step`, `totalSteps` and `lastLoss` in wire format, if the log has them.

    A loss that is not finite is `null` with an entry in `nonFinite`, as in events.
    """
    try:
        size = log.stat().st_size
    except OSError:
        return {}
    return dict(_summary(str(log), size))


@lru_cache(_CACHE_SIZE)
def _summary(path: str, size: int) -> dict[str, Any]:
    """Summarize a log of this size; a log that has not grown is not read again."""
    found: dict[str, Any] = {}
    for read_size in _READ_SIZES:
        with open(path, "rb") as file:  # noqa: PTH123 - the cache keys are strings
            end = os.pread(file.fileno(), read_size, max(0, size - read_size))
            beginning = os.pread(file.fileno(), read_size, 0)
        found = {**_total_steps(beginning), **_last_metrics(end)}
        if found.keys() >= {"step", "totalSteps", "lastLoss"} or size <= read_size:
            break
    return found


def _last_metrics(end: bytes) -> dict[str, Any]:
    """Return the last step and the last training loss in the end of a log."""
    found: dict[str, Any] = {}
    for event in _events(reversed(end.splitlines())):
        if isinstance(event, TrainingLog):
            found.setdefault("step", event.step)
            if event.loss is not None:
                found["lastLoss"] = event.loss if math.isfinite(event.loss) else None
                if not math.isfinite(event.loss):
                    found["nonFinite"] = {"lastLoss": str(event.loss)}
                break
    return found


def _total_steps(beginning: bytes) -> dict[str, Any]:
    """Return the planned number of steps in the beginning of a log."""
    for event in _events(beginning.splitlines()):
        if isinstance(event, TrainingStarted) and event.total_steps is not None:
            return {"totalSteps": event.total_steps}
    return {}


def _events(lines: Iterable[bytes]) -> Iterator[Any]:
    """Decode the lines; skip incomplete and invalid ones."""
    for line in lines:
        with suppress(LogCorrupted, ValueError):
            yield decode_event(decode_line(line))
