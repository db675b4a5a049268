"""What an engine is: it takes a run and tells a recorder what happens.

Where that goes (log, checkpoints, the stop signal) is the worker's business.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from attrs import field, frozen

from arkor.protocol.jobs import JobConfig


class RunError(Exception):
    """Why a run cannot go on: a sentence for the person who submitted it."""


@frozen
class Run:
    """What an engine is given: the configuration, the run's `folder`, the backend's `home`, the data set's token.

    `checkpoint` is the folder of the one to go on from, as the engine has written it, or None at the start.
    """

    job_id: str
    config: JobConfig
    folder: Path
    home: Path
    blob_token: str | None = field(default=None, repr=False)
    checkpoint: Path | None = None


class Recorder(Protocol):
    """What an engine reports to."""

    @property
    def stopping(self) -> bool:
        """Whether the run was asked to stop; an engine looks at it at least once a step and returns early if so."""
        ...

    def preparing(self, message: str) -> None:
        """What goes on before the first step, for a person: "Converting the starter model (once, about 20 s)"."""
        ...

    def started(self, total_steps: int) -> None:
        """The first step is about to be taken."""
        ...

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
        """The numbers of one step; each may be NaN or infinite. Those that were told before a crash are ignored."""
        ...

    def checkpoint(self, step: int, write: Callable[[Path], None]) -> None:
        """`write(folder)` fills an empty folder, which becomes `checkpoints/<step>` only when it is complete.

        What training needs to go on from it lies in the folder `home.STATE` in it. The run goes on without the
        checkpoint if the disk does not take it.
        """
        ...

    def final(self, write: Callable[[Path], None]) -> None:
        """The same for `final/`."""
        ...


class Engine(Protocol):
    """What trains."""

    def train(self, run: Run, recorder: Recorder) -> dict[str, Any]:
        """Train to the end, or until `recorder.stopping`; returns the metrics of `training.completed`.

        Raises `RunError` for what the person can mend.
        """
        ...
