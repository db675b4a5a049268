"""Progress as plain lines, for where there is no terminal."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager, nullcontext, suppress
from types import TracebackType
from typing import TextIO

from arkor.display.run_progress import WORDS, RunProgress
from arkor.formatting import one_line, replace_unencodable
from arkor.protocol.events import (
    CheckpointSaved,
    Event,
    TrainingLog,
    TrainingPreparing,
    TrainingResumed,
    TrainingStarted,
    TrainingWarning,
)


class PlainProgress:
    """One line per stage, checkpoint and end, and between them a line of numbers every `every` seconds."""

    def __init__(
        self, stream: TextIO | None = None, run_progress: RunProgress | None = None, *, every: float = 5.0
    ) -> None:
        self._stream = stream or sys.stderr
        self._run_progress = run_progress or RunProgress()
        self._every = every
        self._next_line = 0.0
        self._null_context: AbstractContextManager[None] = nullcontext()

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def on_event(self, event: Event) -> None:
        """Take in the next event, and write a line if it deserves one."""
        self._run_progress.update(event)
        if isinstance(event, TrainingLog):
            if time.monotonic() >= self._next_line:
                self._next_line = time.monotonic() + self._every
                self._write(*self._numbers())
        elif isinstance(event, CheckpointSaved):
            self._write(f"checkpoint {event.step} saved")
        elif isinstance(event, TrainingStarted):
            self._write(f"training, {self._run_progress.total} steps" if self._run_progress.total else "training")
        elif isinstance(event, (TrainingPreparing, TrainingResumed)):
            self._write(self._run_progress.phase)
        elif isinstance(event, TrainingWarning):
            self._write(one_line(f"warning: {event.message}"))
        else:
            run_progress = self._run_progress
            self._write(
                run_progress.phase,
                f"step {run_progress.steps()}",
                self._loss(),
                run_progress.duration(),
                run_progress.estimate_verdict(),
            )

    def paused(self) -> AbstractContextManager[None]:
        """Around what may print; whole lines need no care."""
        return self._null_context

    def close(self) -> None:
        """Nothing is left open."""

    def _numbers(self) -> tuple[str, ...]:
        run_progress = self._run_progress
        return f"step {run_progress.steps()}", self._loss(), run_progress.speed(), run_progress.time_left()

    def _loss(self) -> str:
        return self._run_progress.losses(WORDS)

    def _write(self, *parts: str) -> None:
        with suppress(OSError, ValueError):  # a closed stream must not hurt the run
            line = f"{self._run_progress.name}: {', '.join(part for part in parts if part)}\n"
            self._stream.write(replace_unencodable(line, self._stream))
            self._stream.flush()
