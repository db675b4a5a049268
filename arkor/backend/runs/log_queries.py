"""Queries on the event log of a run: its progress, the point to resume from, a summary.

They search a log by type without parsing every line: most lines of a long run are metrics, which
crash reporting and resuming do not need. Followers of a log read it through `event_log.py`.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from attrs import Factory, define, frozen

from arkor.backend.runs.event_log import LogCorrupted, decode_line
from arkor.backend.runs.paths import RunFolder
from arkor.protocol.best_checkpoint import BestCheckpointTracker
from arkor.protocol.events import TrainingLog, TrainingStarted, decode_event
from arkor.protocol.jobs import Artifact

# Search by type


@frozen
class LogLine:
    """An event in wire format, and the byte offset at which its line starts."""

    offset: int
    event: dict[str, Any]


class LogIndex:
    """The complete lines of a log by type. Decoding a line raises `LogCorrupted`."""

    def __init__(self, data: mmap.mmap | bytes) -> None:
        self._data = data
        self._end = data.rfind(b"\n") + 1

    def events_of_type(self, kind: str, begin: int = 0, end: int | None = None) -> Iterator[LogLine]:
        """Yield the lines of this type that start between two byte offsets, in order."""
        marker, end = _type_marker(kind), self._end if end is None else end
        position = self._data.find(marker, begin, end)
        while position >= 0:
            if self._is_line_start(position):
                yield self._line_at(position)
            position = self._data.find(marker, position + 1, end)

    def last_of_type(self, kind: str, end: int | None = None) -> LogLine | None:
        """Return the last line of this type that starts before a byte offset."""
        marker = _type_marker(kind)
        position = self._data.rfind(marker, 0, self._end if end is None else end)
        while position >= 0 and not self._is_line_start(position):
            position = self._data.rfind(marker, 0, position)
        return self._line_at(position) if position >= 0 else None

    def _is_line_start(self, position: int) -> bool:
        """Return whether a marker starts a line; a text inside an event may contain one too."""
        return position == 0 or self._data[position - 1 : position] == b"\n"

    def _line_at(self, position: int) -> LogLine:
        return LogLine(position, decode_line(self._data[position : self._data.find(b"\n", position)]))


def _type_marker(kind: str) -> bytes:
    return b'{"type":"%s"' % kind.encode()


@contextmanager
def open_log_index(log: Path) -> Iterator[LogIndex]:
    """Open a log as it is now; a missing file counts as empty. Raise OSError."""
    try:
        file = log.open("rb")
    except FileNotFoundError:
        yield LogIndex(b"")
        return
    with file:
        if not file.seek(0, 2):  # an empty file cannot be mapped
            yield LogIndex(b"")
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield LogIndex(data)


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


def present_artifacts(folder: RunFolder, saved: Mapping[int, Sequence[Any]]) -> tuple[Any, ...]:
    """Return the artifacts of the saved checkpoints that still exist."""
    return tuple(item for step in sorted(saved) if folder.checkpoint(step).is_dir() for item in saved[step])


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


def log_position(event: TrainingLog) -> tuple[int, bool]:
    """Return the sort key of a line of metrics: by step, training before evaluation."""
    return event.step, event.eval_loss is not None


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
    resume_point, before = ResumePoint(), 0
    tracker = resume_point.tracker
    with open_log_index(run.events) as log:
        resume_point.started = log.last_of_type("training.started") is not None
        if (line := log.last_of_type("training.log")) is not None:
            resume_point.last = log_position(_decoded(line))
        for line in log.events_of_type("checkpoint.saved"):
            event = _decoded(line)
            resume_point.saved[event.step] = tuple(event.artifacts or ())
            if run.checkpoint(event.step).is_dir():
                _track_losses(tracker, log, before, line.offset)
                tracker.checkpoint(event.step)
                _track_evaluation(tracker, log, line.offset, event.step)
            before = line.offset
        _track_losses(tracker, log, before, None)
    return resume_point


def _track_losses(tracker: BestCheckpointTracker, log: LogIndex, begin: int, end: int | None) -> None:
    for line in log.events_of_type("training.log", begin, end):
        metrics = _decoded(line)
        tracker.log(metrics.step, metrics.loss, metrics.eval_loss)


def _track_evaluation(tracker: BestCheckpointTracker, log: LogIndex, begin: int, step: int) -> None:
    """Add the evaluation at this step that was logged after the checkpoint."""
    for line in log.events_of_type("training.log", begin):
        metrics = _decoded(line)
        if metrics.step > step:
            return
        tracker.log(metrics.step, None, metrics.eval_loss)


def _decoded(line: LogLine) -> Any:
    try:
        return decode_event(line.event)
    except ValueError as error:
        raise LogCorrupted(f"{error!r} in the line that begins at byte {line.offset}") from error


# Summary

#: Bytes to read at either end of the log; the larger size if the smaller one is not enough.
_READ_SIZES = (4 * 1024, 256 * 1024)
_CACHE_SIZE = 8192


def summary(log: Path) -> dict[str, Any]:
    """Return `step`, `totalSteps` and `lastLoss` in wire format, if the log has them."""
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
