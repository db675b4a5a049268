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
from arkor.backend.runs.log_notifier import notify
from arkor.backend.runs.log_queries import ResumePoint, log_position
from arkor.backend.runs.paths import RunFolder
from arkor.backend.workers.stop_signal import StopSignal
from arkor.protocol.estimates import Estimate
from arkor.protocol.events import (
    CheckpointSaved,
    Event,
    TrainingCancelled,
    TrainingCompleted,
    TrainingFailedEvent,
    TrainingLog,
    TrainingPreparing,
    TrainingStarted,
    TrainingWarning,
    now,
)
from arkor.protocol.jobs import Artifact
from arkor.settings import max_kept_checkpoints

#: What a disk may object to that is no fault of the program.
_DISK_ERROR_WORDS = {
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
        notifier: Path,
        stop_signal: StopSignal,
        resume_point: ResumePoint,
        *,
        estimate: Estimate | None = None,
    ) -> None:
        self._log = log
        self._folder = folder
        self._notifier = notifier
        self._stop_signal = stop_signal
        self._resume_point = resume_point
        self._estimate = estimate
        reached = max(resume_point.last[0], *resume_point.saved, 0)
        self._step: int | None = reached or None
        self._final: Artifact | None = None

    @property
    def stopping(self) -> bool:
        return self._stop_signal.requested

    def preparing(self, message: str) -> None:
        self.write(TrainingPreparing(self._folder.id, now(), message))

    def started(self, total_steps: int) -> None:
        self._stop_signal.poll()
        if not self._resume_point.started:
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
        if log_position(step, eval_loss) <= self._resume_point.last:
            return
        self._step = step
        self._resume_point.tracker.log(step, loss, eval_loss)
        numbers = (loss, eval_loss, learning_rate, epoch, samples_per_second)
        self.write(TrainingLog(self._folder.id, now(), step, *numbers))

    def checkpoint(self, step: int, write: Callable[[Path], None]) -> None:
        folder = self._folder.checkpoint(step)
        if step in self._resume_point.saved and checkpoints.is_resumable(folder):
            return
        try:
            self._write_folder(folder, write)
            self._log_checkpoint(step, folder)
        except Exception as error:  # whatever library writes: what the disk says shows in all of them
            problem = disk_problem(error)
            if problem is None:
                raise
            self._skip_checkpoint(step, folder, problem)
        self.prune_checkpoints(max_kept_checkpoints())

    def final(self, write: Callable[[Path], None]) -> None:
        try:
            checkpoints.write_folder_atomically(self._folder.final, write)
        except Exception as error:
            if disk_problem(error) is None:
                raise
            # training is over: what it could have gone on from makes room for what came of it
            self.drop_training_states()
            checkpoints.write_folder_atomically(self._folder.final, write)
        self._final = self._folder.artifact("final", self._folder.final, self._step)

    def warn(self, sentence: str) -> None:
        """The run goes on, but a person should know of this."""
        self.write(TrainingWarning(self._folder.id, now(), sentence))

    def write(self, event: Event, *, sync: bool = False) -> None:
        """One event into the log, and a word to those who watch."""
        with self._stop_signal.deferred():
            self._log.append(event, sync=sync)
            notify(self._notifier)

    def prune_checkpoints(self, keep: int) -> int:
        """Retire the checkpoints that are not to be kept; returns how many there were."""
        return checkpoints.prune(self._folder, self._resume_point.saved, self._resume_point.tracker, keep)

    def drop_training_states(self) -> None:
        """Nobody will go on with this run. Raises OSError."""
        checkpoints.drop_training_states(self._folder, self._resume_point.saved)

    def completed(self, metrics: dict[str, Any]) -> Event:
        """The event that ends a run which went to its end."""
        return TrainingCompleted(self._folder.id, now(), _json_metrics(metrics), self._artifacts())

    def cancelled(self) -> Event:
        """The event that ends a run which was asked to stop."""
        return TrainingCancelled(self._folder.id, now(), self._step, self._artifacts())

    def failed(self, sentence: str) -> Event:
        """The event that ends a run which could not go on."""
        return TrainingFailedEvent(self._folder.id, now(), sentence, self._step, self._artifacts())

    def _artifacts(self) -> tuple[Artifact, ...]:
        """Of the checkpoints, those that are still there."""
        saved = self._resume_point.saved
        there = [item for step in sorted(saved) if self._folder.checkpoint(step).is_dir() for item in saved[step]]
        return (*there, self._final) if self._final else tuple(there)

    def _write_folder(self, folder: Path, write: Callable[[Path], None]) -> None:
        try:
            checkpoints.write_folder_atomically(folder, write)
        except Exception as error:
            if disk_problem(error) is None or not self._folder.retired.is_dir():
                raise
            checkpoints.remove_expired(self._folder, 0)  # what was only kept for a while makes room
            checkpoints.write_folder_atomically(folder, write)

    def _log_checkpoint(self, step: int, folder: Path) -> None:
        self._step = max(step, self._step or 0)
        if step in self._resume_point.saved:  # and written again, as it was damaged
            return
        artifact = self._folder.artifact("checkpoint", folder, step)
        self.write(CheckpointSaved(self._folder.id, now(), step, (artifact,)), sync=True)
        self._resume_point.saved[step] = (artifact,)
        self._resume_point.tracker.checkpoint(step)

    def _skip_checkpoint(self, step: int, folder: Path, problem: str) -> None:
        if step not in self._resume_point.saved:
            checkpoints.remove(folder)
        sentence = f"The checkpoint of step {step} could not be kept in {folder.parent}: {problem}. "
        remedy = f"The run goes on without it. Make room there; old runs in {self._folder.path.parent} take some."
        self.warn(sentence + remedy)


def disk_problem(error: BaseException) -> str | None:
    """What the disk objects to, in words; None when it is something else that went wrong."""
    os_error = re.search(r"os error (\d+)", str(error))  # how libraries in Rust say it
    number = error.errno if isinstance(error, OSError) else int(os_error[1]) if os_error else None
    return _DISK_ERROR_WORDS.get(number or 0)


def _json_metrics(metrics: dict[str, Any]) -> dict[str, Any]:
    """What JSON can say of the metrics; a number that is not finite becomes null."""
    plain = {key: value for key, value in metrics.items() if isinstance(value, (str, int, float)) or value is None}
    odd = {key for key, value in plain.items() if isinstance(value, float) and not math.isfinite(value)}
    return {**plain, **dict.fromkeys(odd)}
