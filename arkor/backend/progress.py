"""How far a run has come, as those see it who bury or resume its workers: what is there, and whether it gets on.

What a worker itself needs to know of those before it is in `past.py`.
"""

from __future__ import annotations

from typing import Any

from attrs import Factory, define

from arkor.backend.checkpoints import resume_step
from arkor.backend.home import RunFolder
from arkor.backend.log import decode_line, read_events

_COUNTED = frozenset({"training.log", "checkpoint.saved", "training.resumed"})
_PIECE = 1024 * 1024


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
    after = 0
    while events := read_events(folder.events, after, _PIECE):
        for _, kind, line in events:
            if kind in _COUNTED:
                _count(progress, kind, decode_line(line))
        after = events[-1][0]
    return progress


def _count(progress: Progress, kind: str, data: dict[str, Any]) -> None:
    if kind == "training.resumed":
        progress.fruitless += 1
        return
    step = data.get("step")
    if not isinstance(step, int):
        return
    if progress.step is None or step > progress.step:
        progress.step, progress.fruitless = step, 0
    if kind == "checkpoint.saved":
        progress.saved[step] = data.get("artifacts") or []
