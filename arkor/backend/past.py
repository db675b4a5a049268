"""What a worker finds in the log of its run: nothing at first, else what a worker before it has come to."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import cast

from attrs import Factory, define

from arkor.backend.excerpts import Excerpts, Line, excerpts
from arkor.backend.home import RunFolder
from arkor.backend.log import LogDamaged
from arkor.events import CheckpointSaved, Event, TrainingLog, decode_event
from arkor.jobs import Artifact
from arkor.standings import Standings

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
