"""Progress of a run, where a person can see it.

A display is a context manager with `on_event(event)`, called for each event before the callbacks are, and
`paused()`, a context for whatever may print meanwhile.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Literal, Protocol

from arkor.display.notebook import NotebookProgress, in_a_notebook
from arkor.display.plain import PlainProgress
from arkor.display.run_progress import RunProgress
from arkor.display.terminal import TerminalProgress
from arkor.display.terminal_io import can_redraw
from arkor.errors import InvalidConfig
from arkor.protocol.events import Event
from arkor.protocol.jobs import JobConfig, TrainingJob
from arkor.results.history import History


class ProgressDisplay(Protocol):
    """What a trainer reports to."""

    def __enter__(self) -> ProgressDisplay: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def on_event(self, event: Event) -> None:
        """Take in the next event."""
        ...

    def paused(self) -> AbstractContextManager[None]:
        """The display keeps out of the way inside."""
        ...


class NullProgress:
    """`progress=False`."""

    _null_context: AbstractContextManager[None] = nullcontext()

    def __enter__(self) -> NullProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def on_event(self, event: Event) -> None:
        """Nothing."""

    def paused(self) -> AbstractContextManager[None]:
        """Nothing."""
        return self._null_context


def progress_for(
    progress: bool | Literal["auto"] = "auto",
    job: TrainingJob | None = None,
    run_progress: RunProgress | None = None,
    history: History | None = None,
) -> ProgressDisplay:
    """`"auto"` and True: a chart in a notebook's cell, a line in a terminal, plain lines elsewhere, both on stderr.

    False: silence. `run_progress` and `history` are what has been seen of the run before, by an earlier `wait()`.
    """
    if progress not in (True, False, "auto"):
        raise InvalidConfig("progress", f'must be "auto", True or False, not {progress!r}')
    if not progress:
        return NullProgress()
    run_progress = run_progress or run_progress_of(job)
    if job is not None and in_a_notebook():
        return NotebookProgress(run_progress, history or History(), job.id)
    if sys.stderr is None or sys.stderr.closed:
        return NullProgress()
    if can_redraw(sys.stderr):
        return TerminalProgress(sys.stderr, run_progress)
    return PlainProgress(sys.stderr, run_progress)


def run_progress_of(job: TrainingJob | None) -> RunProgress:
    """What is known of a run before its first event."""
    if job is None:
        return RunProgress()
    return RunProgress(job.name, job.config.max_steps if isinstance(job.config, JobConfig) else None)
