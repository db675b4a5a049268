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
from arkor.backend.runs.event_log import LogDamaged, decode_line
from arkor.backend.runs.log_index import Excerpts, Line, excerpts
from arkor.backend.runs.paths import RunFolder
from arkor.protocol.best_checkpoint import Standings
from arkor.protocol.events import CheckpointSaved, Event, TrainingLog, TrainingStarted, decode_event
from arkor.protocol.jobs import Artifact


@define
class Progress:
    """The last `step` in the log, the `artifacts` (as on the wire) of each checkpoint in it by its step, and how many
    resumptions there were since a step was reached that had not been reached before.
    """

    step: int | None = None
    fruitless: int = 0
    saved: dict[int, list[Any]] = Factory(dict)

    def artifacts(self, folder: RunFolder) -> tuple[Any, ...]:
        """Those that are still there."""
        there = [step for step in sorted(self.saved) if folder.checkpoint(step).is_dir()]
        return tuple(artifact for step in there for artifact in self.saved[step])

    def resumable(self, folder: RunFolder) -> int:
        """The step that a worker goes on from; 0 is the start."""
        return resume_step(folder, self.saved) or 0


def read_progress(folder: RunFolder) -> Progress:
    """The progress of the run in this folder. Raises `LogDamaged`."""
    progress = Progress()
    with excerpts(folder.events) as log:
        progress.step = _step_before(log, None)
        for line in log.of("checkpoint.saved"):
            if (step := _step(line)) is not None:
                progress.saved[step] = line.event.get("artifacts") or []
        end = None
        while resumed := log.last("training.resumed", end):
            if _step_before(log, resumed.begin) != progress.step:
                break
            progress.fruitless += 1
            end = resumed.begin
    return progress


def _step_before(log: Excerpts, end: int | None) -> int | None:
    """The last step of which anything was said before that byte; they never go back."""
    lines = (log.last("training.log", end), log.last("checkpoint.saved", end))
    return max((step for line in lines if line and (step := _step(line)) is not None), default=None)


def _step(line: Line) -> int | None:
    step = line.event.get("step")
    return step if isinstance(step, int) else None


#: Before the first line of numbers.
NOTHING_LOGGED = (-1, False)


def place(step: int, eval_loss: float | None) -> tuple[int, bool]:
    """Where a line of numbers stands among the others: by step, those of training before those of evaluation."""
    return step, eval_loss is not None


@define
class Past:
    """`last` is the place of the last line of numbers, `saved` the artifacts of each checkpoint by its step.

    `standings` say how good those checkpoints are that are still there.
    """

    started: bool = False
    last: tuple[int, bool] = NOTHING_LOGGED
    saved: dict[int, tuple[Artifact, ...]] = Factory(dict)
    standings: Standings = Factory(Standings)


def read_past(run: RunFolder) -> Past:
    """The past of this run. Raises `LogDamaged`."""
    past = Past()
    with excerpts(run.events) as log:
        past.started = log.last("training.started") is not None
        if (line := log.last("training.log")) is not None:
            numbers = _numbers(line)
            past.last = place(numbers.step, numbers.eval_loss)
        checkpoints = [(line.begin, _checkpoint(line)) for line in log.of("checkpoint.saved")]
        past.saved = {event.step: tuple(event.artifacts or ()) for _, event in checkpoints}
        there = {step for step in past.saved if run.checkpoint(step).is_dir()}
        _compare(past.standings, log, [(begin, event.step) for begin, event in checkpoints], there)
    return past


def _compare(
    standings: Standings, log: Excerpts, checkpoints: Sequence[tuple[int, int]], there: Collection[int]
) -> None:
    """Of the checkpoints, as (where its line begins, step), those that are there; the numbers of others say nothing."""
    before = 0
    for begin, step in checkpoints:
        if step in there:
            _take(standings, log, before, begin)
            standings.checkpoint(step)
            _take_evaluation(standings, log, begin, step)
        before = begin
    _take(standings, log, before, None)


def _take(standings: Standings, log: Excerpts, begin: int, end: int | None) -> None:
    for line in log.of("training.log", begin, end):
        numbers = _numbers(line)
        standings.log(numbers.step, numbers.loss, numbers.eval_loss)


def _take_evaluation(standings: Standings, log: Excerpts, begin: int, step: int) -> None:
    """What was measured at that very step after the checkpoint was saved."""
    for line in log.of("training.log", begin):
        numbers = _numbers(line)
        if numbers.step > step:
            return
        standings.log(numbers.step, None, numbers.eval_loss)


def _numbers(line: Line) -> TrainingLog:
    return cast("TrainingLog", _decoded(line))


def _checkpoint(line: Line) -> CheckpointSaved:
    return cast("CheckpointSaved", _decoded(line))


def _decoded(line: Line) -> Event | None:
    try:
        return decode_event(line.event)
    except ValueError as error:
        raise LogDamaged(f"{error!r} in the line that begins at byte {line.begin}") from error


_PIECES = (4 * 1024, 256 * 1024)  # bytes of an end of the log; the larger where the smaller does not say it
_KEPT = 8192


def summary(log: Path) -> dict[str, Any]:
    """`step`, `totalSteps` and `lastLoss` as on the wire, those of them that the log tells; a loss that is not finite
    is `null`, and said in `nonFinite`, as in events.
    """
    try:
        size = log.stat().st_size
    except OSError:
        return {}
    return dict(_summary(str(log), size))


@lru_cache(_KEPT)
def _summary(path: str, size: int) -> dict[str, Any]:
    """Of a log of that many bytes: what has not grown since need not be read again."""
    found: dict[str, Any] = {}
    for piece in _PIECES:
        with open(path, "rb") as file:  # noqa: PTH123 - a str is what the cache is asked with
            _look_at_end(os.pread(file.fileno(), piece, max(0, size - piece)), found)
            if "totalSteps" not in found:
                _look_at_beginning(os.pread(file.fileno(), piece, 0), found)
        if len(found.keys() - {"nonFinite"}) == 3 or size <= piece:
            break
    return found


def _look_at_end(piece: bytes, found: dict[str, Any]) -> None:
    for event in _events(reversed(piece.splitlines())):
        if not isinstance(event, TrainingLog):
            continue
        found.setdefault("step", event.step)
        if event.loss is not None:
            finite = math.isfinite(event.loss)
            found["lastLoss"] = event.loss if finite else None
            if not finite:
                found["nonFinite"] = {"lastLoss": "nan" if event.loss != event.loss else str(event.loss)}
            return


def _look_at_beginning(piece: bytes, found: dict[str, Any]) -> None:
    for event in _events(iter(piece.splitlines())):
        if isinstance(event, TrainingStarted) and event.total_steps is not None:
            found["totalSteps"] = event.total_steps
            return


def _events(lines: Iterator[bytes]) -> Iterator[Any]:
    """Those that are whole and make sense."""
    for line in lines:
        with suppress(LogDamaged, ValueError):
            yield decode_event(decode_line(line))
