"""How far a run has come, as those see it who bury or resume its workers: what is there, and whether it gets on.

What a worker itself needs to know of those before it is in `past.py`.
"""

from __future__ import annotations

from typing import Any

from attrs import Factory, define

from arkor.backend.checkpoints import resume_step
from arkor.backend.excerpts import Excerpts, Line, excerpts
from arkor.backend.home import RunFolder


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
