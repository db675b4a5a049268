"""Queries on the event log of a run: its progress, the state that a resuming worker starts from, a summary."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator, Sequence
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


@define
class LogProgress:
    """The last `step` in the log, the `artifacts` (as on the wire) of each checkpoint in it by its step, and how many
    resumptions there were since a step was reached that had not been reached before.
    """

    step: int | None = None
    stalled_resumptions: int = 0
    saved: dict[int, list[Any]] = Factory(dict)

    def artifacts(self, folder: RunFolder) -> tuple[Any, ...]:
        """Those that are still there."""
        present = [step for step in sorted(self.saved) if folder.checkpoint(step).is_dir()]
        return tuple(artifact for step in present for artifact in self.saved[step])

    def resume_step(self, folder: RunFolder) -> int:
        """The step that a worker goes on from; 0 is the start."""
        return resume_step(folder, self.saved) or 0


def read_log_progress(folder: RunFolder) -> LogProgress:
    """The progress of the run in this folder. Raises `LogCorrupted`."""
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
    """The last step of which anything was said before that byte; they never go back."""
    lines = (log.last_of_type("training.log", end), log.last_of_type("checkpoint.saved", end))
    return max((step for line in lines if line and (step := _step(line)) is not None), default=None)


def _step(line: LogLine) -> int | None:
    step = line.event.get("step")
    return step if isinstance(step, int) else None


#: Before the first line of numbers.
NOTHING_LOGGED = (-1, False)


def log_position(step: int, eval_loss: float | None) -> tuple[int, bool]:
    """Where a line of numbers stands among the others: by step, those of training before those of evaluation."""
    return step, eval_loss is not None


@define
class ResumePoint:
    """`last` is the place of the last line of numbers, `saved` the artifacts of each checkpoint by its step.

    `tracker` say how good those checkpoints are that are still there.
    """

    started: bool = False
    last: tuple[int, bool] = NOTHING_LOGGED
    saved: dict[int, tuple[Artifact, ...]] = Factory(dict)
    tracker: BestCheckpointTracker = Factory(BestCheckpointTracker)


def read_resume_point(run: RunFolder) -> ResumePoint:
    """The past of this run. Raises `LogCorrupted`."""
    resume_point = ResumePoint()
    with open_log_index(run.events) as log:
        resume_point.started = log.last_of_type("training.started") is not None
        if (line := log.last_of_type("training.log")) is not None:
            numbers = _numbers(line)
            resume_point.last = log_position(numbers.step, numbers.eval_loss)
        checkpoints = [(line.offset, _checkpoint(line)) for line in log.events_of_type("checkpoint.saved")]
        resume_point.saved = {event.step: tuple(event.artifacts or ()) for _, event in checkpoints}
        present = {step for step in resume_point.saved if run.checkpoint(step).is_dir()}
        _track_checkpoints(resume_point.tracker, log, [(begin, event.step) for begin, event in checkpoints], present)
    return resume_point


def _track_checkpoints(
    tracker: BestCheckpointTracker, log: LogIndex, checkpoints: Sequence[tuple[int, int]], present: Collection[int]
) -> None:
    """Of the checkpoints, as (where its line begins, step), those that are there; the numbers of others say nothing."""
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
        numbers = _numbers(line)
        tracker.log(numbers.step, numbers.loss, numbers.eval_loss)


def _track_evaluation(tracker: BestCheckpointTracker, log: LogIndex, begin: int, step: int) -> None:
    """What was measured at that very step after the checkpoint was saved."""
    for line in log.events_of_type("training.log", begin):
        numbers = _numbers(line)
        if numbers.step > step:
            return
        tracker.log(numbers.step, None, numbers.eval_loss)


def _numbers(line: LogLine) -> TrainingLog:
    return cast("TrainingLog", _decoded(line))


def _checkpoint(line: LogLine) -> CheckpointSaved:
    return cast("CheckpointSaved", _decoded(line))


def _decoded(line: LogLine) -> Event | None:
    try:
        return decode_event(line.event)
    except ValueError as error:
        raise LogCorrupted(f"{error!r} in the line that begins at byte {line.offset}") from error


_READ_SIZES = (4 * 1024, 256 * 1024)  # bytes of an end of the log; the larger where the smaller does not say it
_CACHE_SIZE = 8192


def summary(log: Path) -> dict[str, Any]:
    """`step`, `totalSteps` and `lastLoss` as on the wire, those of them that the log tells; a loss that is not finite
    is `null`, and said in `nonFinite`, as in events.
    """
    try:
        size = log.stat().st_size
    except OSError:
        return {}
    return dict(_summary(str(log), size))


@lru_cache(_CACHE_SIZE)
def _summary(path: str, size: int) -> dict[str, Any]:
    """Of a log of that many bytes: what has not grown since need not be read again."""
    found: dict[str, Any] = {}
    for read_size in _READ_SIZES:
        with open(path, "rb") as file:  # noqa: PTH123 - a str is what the cache is asked with
            _scan_end(os.pread(file.fileno(), read_size, max(0, size - read_size)), found)
            if "totalSteps" not in found:
                _scan_beginning(os.pread(file.fileno(), read_size, 0), found)
        if len(found.keys() - {"nonFinite"}) == 3 or size <= read_size:
            break
    return found


def _scan_end(chunk: bytes, found: dict[str, Any]) -> None:
    for event in _events(reversed(chunk.splitlines())):
        if not isinstance(event, TrainingLog):
            continue
        found.setdefault("step", event.step)
        if event.loss is not None:
            finite = math.isfinite(event.loss)
            found["lastLoss"] = event.loss if finite else None
            if not finite:
                found["nonFinite"] = {"lastLoss": "nan" if event.loss != event.loss else str(event.loss)}
            return


def _scan_beginning(chunk: bytes, found: dict[str, Any]) -> None:
    for event in _events(iter(chunk.splitlines())):
        if isinstance(event, TrainingStarted) and event.total_steps is not None:
            found["totalSteps"] = event.total_steps
            return


def _events(lines: Iterator[bytes]) -> Iterator[Any]:
    """Those that are whole and make sense."""
    for line in lines:
        with suppress(LogCorrupted, ValueError):
            yield decode_event(decode_line(line))
