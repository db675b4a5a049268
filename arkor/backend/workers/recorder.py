"""The recorder of a worker, which writes events to the log and checkpoints to folders.

A worker that resumes a run repeats some steps; their metrics are not logged twice. A checkpoint
that cannot be written because of the disk causes a warning and does not end the run.
"""

from __future__ import annotations

import errno
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import define, field

from arkor.backend.engine.interface import Recorder
from arkor.backend.runs import checkpoints
from arkor.backend.runs.event_log import LogWriter
from arkor.backend.runs.log_notifier import notify
from arkor.backend.runs.log_queries import ResumePoint, log_position, present_artifacts
from arkor.backend.runs.paths import RunFolder
from arkor.backend.workers.signals import StopSignal
from arkor.protocol import events
from arkor.protocol.estimates import Estimate
from arkor.protocol.events import now
from arkor.protocol.jobs import Artifact
from arkor.settings import max_kept_checkpoints

#: Errors that the disk causes, not the program.
_DISK_ERRORS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file would be larger than the limit",
    errno.EROFS: "the disk is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EIO: "the disk reports an I/O error",
    errno.ESTALE: "the disk was unmounted",
}


@define
class LogRecorder(Recorder):
    """The `Recorder` of a worker; `estimate` is from a check of the same configuration."""

    _log: LogWriter
    _folder: RunFolder
    _notifier: Path
    _stop_signal: StopSignal
    _resume_point: ResumePoint
    _estimate: Estimate | None = field(default=None, kw_only=True)
    _step: int | None = field(init=False)
    _final: Artifact | None = field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        self._step = max(self._resume_point.last[0], *self._resume_point.saved, 0) or None

    @property
    def stopping(self) -> bool:
        return self._stop_signal.requested

    def preparing(self, message: str) -> None:
        self.write(events.TrainingPreparing(self._folder.id, now(), message))

    def started(self, total_steps: int) -> None:
        self._stop_signal.poll()
        if not self._resume_point.started:
            self.write(events.TrainingStarted(self._folder.id, now(), total_steps, self._estimate))

    def log(self, step: int, **metrics: float | None) -> None:
        event = events.TrainingLog(self._folder.id, now(), step, **metrics)
        if log_position(event) <= self._resume_point.last:
            return
        self._step = step
        self._resume_point.tracker.log(step, event.loss, event.eval_loss)
        self.write(event)

    def checkpoint(self, step: int, write: Callable[[Path], None]) -> None:
        folder = self._folder.checkpoint(step)
        if step in self._resume_point.saved and checkpoints.is_resumable(folder):
            return
        try:
            self._write_folder(folder, write)
            self._log_checkpoint(step, folder)
        except Exception as error:  # raised by one of several libraries; `disk_problem` recognizes the disk's errors
            problem = disk_problem(error)
            if problem is None:
                raise
            if step not in self._resume_point.saved:
                checkpoints.remove(folder)
            self.warn(
                f"The checkpoint of step {step} could not be saved in {folder.parent}: {problem}. The run continues "
                f"without it. Free some space there, for example by deleting old runs in {self._folder.path.parent}."
            )
        self.prune_checkpoints()

    def final(self, write: Callable[[Path], None]) -> None:
        try:
            checkpoints.write_folder_atomically(self._folder.final, write)
        except Exception as error:
            if disk_problem(error) is None:
                raise
            self.drop_training_states()  # training is over, so they can make room for the result
            checkpoints.write_folder_atomically(self._folder.final, write)
        self._final = self._folder.artifact("final", self._folder.final, self._step)

    def warn(self, message: str) -> None:
        self.write(events.TrainingWarning(self._folder.id, now(), message))

    def write(self, event: events.Event, *, sync: bool = False) -> None:
        """Append an event to the log and notify its followers."""
        with self._stop_signal.deferred():
            self._log.append(event, sync=sync)
            notify(self._notifier)

    def prune_checkpoints(self) -> None:
        resume_point = self._resume_point
        checkpoints.prune(self._folder, resume_point.saved, resume_point.tracker, max_kept_checkpoints())

    def drop_training_states(self) -> None:
        checkpoints.drop_training_states(self._folder, self._resume_point.saved)

    def completed(self, metrics: dict[str, Any]) -> events.Event:
        metrics = events.with_synonyms(_json_metrics(metrics))
        return events.TrainingCompleted(self._folder.id, now(), metrics, self._artifacts())

    def cancelled(self) -> events.Event:
        return events.TrainingCancelled(self._folder.id, now(), self._step, self._artifacts())

    def failed(self, problem: str) -> events.Event:
        return events.TrainingFailedEvent(self._folder.id, now(), problem, self._step, self._artifacts())

    def _artifacts(self) -> tuple[Artifact, ...]:
        present = present_artifacts(self._folder, self._resume_point.saved)
        return (*present, self._final) if self._final else present

    def _write_folder(self, folder: Path, write: Callable[[Path], None]) -> None:
        try:
            checkpoints.write_folder_atomically(folder, write)
        except Exception as error:
            if disk_problem(error) is None or not self._folder.retired.is_dir():
                raise
            checkpoints.remove_expired(self._folder, 0)  # retired checkpoints make room
            checkpoints.write_folder_atomically(folder, write)

    def _log_checkpoint(self, step: int, folder: Path) -> None:
        self._step = max(step, self._step or 0)
        if step in self._resume_point.saved:  # it was damaged and has been rewritten
            return
        artifact = self._folder.artifact("checkpoint", folder, step)
        self.write(events.CheckpointSaved(self._folder.id, now(), step, (artifact,)), sync=True)
        self._resume_point.saved[step] = (artifact,)
        self._resume_point.tracker.checkpoint(step)


def disk_problem(error: BaseException) -> str | None:
    """Describe an error that the disk caused; return None for any other error."""
    os_error = re.search(r"os error (\d+)", str(error))  # the format of libraries in Rust
    number = error.errno if isinstance(error, OSError) else int(os_error[1]) if os_error else None
    return _DISK_ERRORS.get(number or 0)


def _json_metrics(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return the metrics that JSON can represent; numbers that are not finite become null."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in metrics.items()
        if isinstance(value, (str, int, float)) or value is None
    }
