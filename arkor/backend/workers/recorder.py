"""What an engine reports to in a worker: every report becomes a line in the log, every checkpoint a folder.

A worker that goes on where another one died computes some steps again; what the log says of them already is not said
twice. A checkpoint that the disk does not take costs a warning, not the run.
"""

from __future__ import annotations

import errno
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from arkor.backend.runs import checkpoints
from arkor.backend.runs.event_log import LogWriter
from arkor.backend.runs.log_notifier import ring
from arkor.backend.runs.log_queries import Past, place
from arkor.backend.runs.paths import RunFolder
from arkor.backend.workers.stop_signal import StopSign
from arkor.protocol.estimates import Estimate
from arkor.protocol.events import (
    CheckpointSaved,
    Event,
    TrainingCancelled,
    TrainingCompleted,
    TrainingFailed,
    TrainingLog,
    TrainingPreparing,
    TrainingStarted,
    TrainingWarning,
    now,
)
from arkor.protocol.jobs import Artifact
from arkor.settings import checkpoints_kept

#: What a disk may object to that is no fault of the program.
_OBJECTIONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "your share of the disk is used up",
    errno.EFBIG: "a file would be larger than is allowed there",
    errno.EROFS: "the disk can only be read",
    errno.EACCES: "writing there is not permitted",
    errno.EPERM: "writing there is not permitted",
    errno.EIO: "the disk has a fault",
    errno.ESTALE: "the disk is gone",
}


class LogRecorder:
    """The engine's `Recorder`; `past` is what the log says already, `estimate` what a check of the run has found."""

    def __init__(
        self,
        log: LogWriter,
        folder: RunFolder,
        bell: Path,
        stop: StopSign,
        past: Past,
        *,
        estimate: Estimate | None = None,
    ) -> None:
        self._log = log
        self._folder = folder
        self._bell = bell
        self._stop = stop
        self._past = past
        self._estimate = estimate
        reached = max(past.last[0], *past.saved, 0)
        self._step: int | None = reached or None
        self._final: Artifact | None = None

    @property
    def stopping(self) -> bool:
        return self._stop.up

    def preparing(self, message: str) -> None:
        self.write(TrainingPreparing(self._folder.id, now(), message))

    def started(self, total_steps: int) -> None:
        self._stop.mind()
        if not self._past.started:
            self.write(TrainingStarted(self._folder.id, now(), total_steps, self._estimate))

    def log(
        self,
        step: int,
        *,
        loss: float | None = None,
        eval_loss: float | None = None,
        learning_rate: float | None = None,
        epoch: float | None = None,
        samples_per_second: float | None = None,
    ) -> None:
        if place(step, eval_loss) <= self._past.last:
            return
        self._step = step
        self._past.standings.log(step, loss, eval_loss)
        numbers = (loss, eval_loss, learning_rate, epoch, samples_per_second)
        self.write(TrainingLog(self._folder.id, now(), step, *numbers))

    def checkpoint(self, step: int, write: Callable[[Path], None]) -> None:
        folder = self._folder.checkpoint(step)
        if step in self._past.saved and checkpoints.is_resumable(folder):
            return
        try:
            self._keep(folder, write)
            self._list(step, folder)
        except Exception as error:  # whatever library writes: what the disk says shows in all of them
            trouble = disk_trouble(error)
            if trouble is None:
                raise
            self._go_without(step, folder, trouble)
        self.thin_out(checkpoints_kept())

    def final(self, write: Callable[[Path], None]) -> None:
        try:
            checkpoints.write_whole(self._folder.final, write)
        except Exception as error:
            if disk_trouble(error) is None:
                raise
            self.forget_states()  # training is over: what it could have gone on from makes room for what came of it
            checkpoints.write_whole(self._folder.final, write)
        self._final = self._folder.artifact("final", self._folder.final, self._step)

    def warn(self, sentence: str) -> None:
        """The run goes on, but a person should know of this."""
        self.write(TrainingWarning(self._folder.id, now(), sentence))

    def write(self, event: Event, *, sync: bool = False) -> None:
        """One event into the log, and a word to those who watch."""
        with self._stop.held():
            self._log.append(event, sync=sync)
            ring(self._bell)

    def thin_out(self, keep: int) -> int:
        """Retire the checkpoints that are not to be kept; returns how many there were."""
        return checkpoints.thin_out(self._folder, self._past.saved, self._past.standings, keep)

    def forget_states(self) -> None:
        """Nobody will go on with this run. Raises OSError."""
        checkpoints.forget_states(self._folder, self._past.saved)

    def completed(self, metrics: dict[str, Any]) -> Event:
        """The event that ends a run which went to its end."""
        return TrainingCompleted(self._folder.id, now(), _plain(metrics), self._artifacts())

    def cancelled(self) -> Event:
        """The event that ends a run which was asked to stop."""
        return TrainingCancelled(self._folder.id, now(), self._step, self._artifacts())

    def failed(self, sentence: str) -> Event:
        """The event that ends a run which could not go on."""
        return TrainingFailed(self._folder.id, now(), sentence, self._step, self._artifacts())

    def _artifacts(self) -> tuple[Artifact, ...]:
        """Of the checkpoints, those that are still there."""
        saved = self._past.saved
        there = [item for step in sorted(saved) if self._folder.checkpoint(step).is_dir() for item in saved[step]]
        return (*there, self._final) if self._final else tuple(there)

    def _keep(self, folder: Path, write: Callable[[Path], None]) -> None:
        try:
            checkpoints.write_whole(folder, write)
        except Exception as error:
            if disk_trouble(error) is None or not self._folder.retired.is_dir():
                raise
            checkpoints.discharge(self._folder, 0)  # what was only kept for a while makes room
            checkpoints.write_whole(folder, write)

    def _list(self, step: int, folder: Path) -> None:
        self._step = max(step, self._step or 0)
        if step in self._past.saved:  # and written again, as it was damaged
            return
        artifact = self._folder.artifact("checkpoint", folder, step)
        self.write(CheckpointSaved(self._folder.id, now(), step, (artifact,)), sync=True)
        self._past.saved[step] = (artifact,)
        self._past.standings.checkpoint(step)

    def _go_without(self, step: int, folder: Path, trouble: str) -> None:
        if step not in self._past.saved:
            checkpoints.remove(folder)
        sentence = f"The checkpoint of step {step} could not be kept in {folder.parent}: {trouble}. "
        advice = f"The run goes on without it. Make room there; old runs in {self._folder.path.parent} take some."
        self.warn(sentence + advice)


def disk_trouble(error: BaseException) -> str | None:
    """What the disk objects to, in words; None when it is something else that went wrong."""
    hidden = re.search(r"os error (\d+)", str(error))  # how libraries in Rust say it
    number = error.errno if isinstance(error, OSError) else int(hidden[1]) if hidden else None
    return _OBJECTIONS.get(number or 0)


def _plain(metrics: dict[str, Any]) -> dict[str, Any]:
    """What JSON can say of the metrics; a number that is not finite becomes null."""
    plain = {key: value for key, value in metrics.items() if isinstance(value, (str, int, float)) or value is None}
    odd = {key for key, value in plain.items() if isinstance(value, float) and not math.isfinite(value)}
    return {**plain, **dict.fromkeys(odd)}
