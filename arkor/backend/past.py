"""What a worker finds in the log of its run: nothing at first, else what a worker before it has come to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from attrs import Factory, define

from arkor.backend.log import LogDamaged, read_events
from arkor.events import CheckpointSaved, TrainingLog, decode_event
from arkor.jobs import Artifact
from arkor.standings import Standings

_PIECE = 1024 * 1024

#: Before the first line of numbers.
NOTHING_LOGGED = (-1, False)


def place(step: int, eval_loss: float | None) -> tuple[int, bool]:
    """Where a line of numbers stands among the others: by step, those of training before those of evaluation."""
    return step, eval_loss is not None


@define
class Past:
    """`last` is the place of the last line of numbers, `saved` the artifacts of each checkpoint by its step.

    `standings` say how good the checkpoints are.
    """

    started: bool = False
    last: tuple[int, bool] = NOTHING_LOGGED
    saved: dict[int, tuple[Artifact, ...]] = Factory(dict)
    standings: Standings = Factory(Standings)


def read_past(log: Path) -> Past:
    """The past of the run with this log. Raises `LogDamaged`."""
    past = Past()
    after = 0
    while events := read_events(log, after, _PIECE):
        for _, kind, line in events:
            _take(past, kind, line)
        after = events[-1][0]
    return past


def _take(past: Past, kind: str, line: bytes) -> None:
    if kind == "training.started":
        past.started = True
    elif kind in ("training.log", "checkpoint.saved"):
        _take_log(past, _event(line))


def _take_log(past: Past, event: Any) -> None:
    if isinstance(event, CheckpointSaved):
        past.saved[event.step] = tuple(event.artifacts or ())
        past.standings.checkpoint(event.step)
    elif isinstance(event, TrainingLog):
        past.last = max(past.last, place(event.step, event.eval_loss))
        past.standings.log(event.step, event.loss, event.eval_loss)


def _event(line: bytes) -> Any:
    try:
        return decode_event(json.loads(line))
    except ValueError as error:
        raise LogDamaged(f"{error!r} in {line[:80]!r}") from error
