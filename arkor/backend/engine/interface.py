"""The interface between a worker and the engine that trains: `Engine.train(run, recorder)`.

The recorder decides where events and checkpoints are stored and when a run is asked to stop.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from attrs import field, frozen

from arkor.errors import StructuredError
from arkor.protocol.jobs import JobConfig


class RunError(StructuredError):
    """A run cannot continue for a reason that its owner can fix."""


@frozen
class Run:
    """The input of an engine.

    `home` is the backend's folder, `blob_token` the bearer token of a data set with a URL.
    `checkpoint` is the folder of the checkpoint to resume from, or None to start at step 0.
    `date` is when the run was submitted, in local time; it stays the same when a run is resumed.
    """

    job_id: str
    config: JobConfig
    folder: Path
    home: Path
    blob_token: str | None = field(default=None, repr=False)
    checkpoint: Path | None = None
    date: datetime | None = None


class Recorder:
    """Receives the progress of an engine. This base class ignores it."""

    @property
    def stopping(self) -> bool:
        """Whether the run was asked to stop; engines check it at least once a step."""
        return False

    def preparing(self, message: str) -> None:
        """Report progress before the first step, such as "Loading the model"."""

    def started(self, total_steps: int) -> None:
        """Report that the first step is about to run."""

    def log(self, step: int, **metrics: float | None) -> None:
        """Record the `METRIC_FIELDS` of one step; each may be None, NaN or infinite.

        Steps that a previous worker recorded before it crashed are ignored.
        """

    def checkpoint(self, step: int, write: Callable[[Path], None]) -> None:
        """Save a checkpoint: `write(folder)` fills an empty folder, later `checkpoints/<step>`.

        The subfolder `paths.STATE_FOLDER` holds the training state. The run continues without the
        checkpoint if the disk is full.
        """

    def final(self, write: Callable[[Path], None]) -> None:
        """Save the final adapter in `final/`, in the same way."""


class Engine(Protocol):
    """Trains one run."""

    def train(self, run: Run, recorder: Recorder) -> dict[str, Any]:
        """Train to the last step or until `recorder.stopping`; return metrics. Raise `RunError`."""
