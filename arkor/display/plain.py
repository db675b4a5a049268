"""Progress as plain lines, for output that is not a terminal."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import TextIO

from arkor.display.run_progress import WORDS, ProgressDisplay, RunProgress, joined
from arkor.formatting import one_line, replace_unencodable
from arkor.protocol import events


class PlainProgress(ProgressDisplay):
    """Write one line per phase, checkpoint and end, and a line of numbers every `every` seconds."""

    def __init__(
        self, stream: TextIO | None = None, run_progress: RunProgress | None = None, *, every: float = 5.0
    ) -> None:
        self._stream = stream or sys.stderr
        self._run_progress = run_progress or RunProgress()
        self._every = every
        self._next_line = 0.0

    def on_event(self, event: events.Event) -> None:
        run_progress = self._run_progress
        run_progress.update(event)
        if isinstance(event, events.TrainingLog):
            if time.monotonic() >= self._next_line:
                self._next_line = time.monotonic() + self._every
                steps, loss = f"step {run_progress.steps()}", run_progress.losses(WORDS)
                self._write(steps, loss, run_progress.speed(), run_progress.time_left())
        elif isinstance(event, events.CheckpointSaved):
            self._write(f"checkpoint {event.step} saved")
        elif isinstance(event, events.TrainingStarted):
            self._write(f"training, {run_progress.total} steps" if run_progress.total else "training")
        elif isinstance(event, (events.TrainingPreparing, events.TrainingResumed)):
            self._write(run_progress.phase)
        elif isinstance(event, events.TrainingWarning):
            self._write(one_line(f"warning: {event.message}"))
        else:
            steps, loss = f"step {run_progress.steps()}", run_progress.losses(WORDS)
            self._write(run_progress.phase, steps, loss, run_progress.duration(), run_progress.estimate_verdict())

    def _write(self, *facts: str) -> None:
        with suppress(OSError, ValueError):  # a closed stream must not end the wait
            self._stream.write(replace_unencodable(f"{self._run_progress.name}: {joined(*facts)}\n", self._stream))
            self._stream.flush()
