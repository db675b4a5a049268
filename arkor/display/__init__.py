"""Progress of a run or another operation, in a notebook cell, on a terminal, or as plain lines."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from html import escape
from typing import Literal

from arkor.display.notebook import DisplayHandle, NotebookProgress, in_a_notebook, line_html
from arkor.display.plain import PlainProgress
from arkor.display.run_progress import ProgressDisplay, RunProgress
from arkor.display.terminal import TerminalProgress
from arkor.display.terminal_io import ERASE, can_redraw, columns_of, trimmed
from arkor.formatting import one_line, replace_unencodable
from arkor.protocol.jobs import JobConfig, TrainingJob
from arkor.results.history import History


def progress_for(
    progress: bool | Literal["auto"] = "auto",
    job: TrainingJob | None = None,
    run_progress: RunProgress | None = None,
    history: History | None = None,
) -> ProgressDisplay:
    """Return the display for a checked `progress` setting.

    `"auto"` and True select a chart in a notebook, a redrawn line on a terminal, and plain lines
    elsewhere; the latter two write to stderr. False selects a display that shows nothing.
    `run_progress` and `history` continue what an earlier `wait()` has seen.
    """
    if not progress:
        return ProgressDisplay()
    run_progress = run_progress or run_progress_of(job)
    if job is not None and in_a_notebook():
        return NotebookProgress(run_progress, history or History(), job.id)
    if sys.stderr is None or sys.stderr.closed:
        return ProgressDisplay()
    if can_redraw(sys.stderr):
        return TerminalProgress(sys.stderr, run_progress)
    return PlainProgress(sys.stderr, run_progress)


def run_progress_of(job: TrainingJob | None) -> RunProgress:
    """Return the progress of a run before its first event."""
    if job is None:
        return RunProgress()
    return RunProgress(job.name, job.config.max_steps if isinstance(job.config, JobConfig) else None)


@contextmanager
def status_for(progress: bool | Literal["auto"]) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows the status of a long operation on one line, if possible."""
    stream = sys.stderr
    if progress and in_a_notebook():
        handle = DisplayHandle()
        try:
            yield lambda message: handle.update(one_line(message), line_html(escape(one_line(message))))
        finally:
            handle.clear()
    elif not progress or stream is None or stream.closed:
        yield lambda _message: None
    else:
        redraws = can_redraw(stream)

        def write(text: str) -> None:
            with suppress(OSError, ValueError):  # a closed terminal must not end the operation
                stream.write(replace_unencodable(text, stream))
                stream.flush()

        def show(message: str) -> None:
            text = one_line(message)
            write(f"{ERASE}{trimmed(text, columns_of(stream) - 1)}" if redraws else f"{text}\n")

        try:
            yield show
        finally:
            if redraws:
                write(ERASE)
