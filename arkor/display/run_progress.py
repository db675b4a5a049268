"""The state of a run in progress, its wording, and the interface of a display."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

from arkor.formatting import format_duration, format_loss, one_line, seconds_between
from arkor.protocol import events
from arkor.protocol.estimates import Estimate, Outcome, outcome_of

_RECENT_STEPS = 24  # the window for speed and trend
_MAX_STEPS = 2**53  # larger step numbers are capped, so that arithmetic with floats cannot overflow
_FLAT_TREND = 0.01  # a smaller relative change counts as level, however significant it is

#: How a trend is shown: as an arrow, in words, or not at all.
ARROWS = {-1: " ↘", 0: " →", 1: " ↗"}
WORDS = {-1: " (falling)", 0: "", 1: " (rising)"}
NO_ARROWS = {-1: "", 0: "", 1: ""}

Display = TypeVar("Display", bound="ProgressDisplay")
_NO_PAUSE = nullcontext()


class ProgressDisplay:
    """Base class of the displays; it shows nothing.

    `wait()` enters the display, calls `on_event` before the callbacks of each event, and runs the
    callbacks inside `paused()`.
    """

    def __enter__(self: Display) -> Display:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def on_event(self, event: events.Event) -> None:
        """Process the next event."""

    def paused(self) -> AbstractContextManager[None]:
        """Return a context inside which other code may print."""
        return _NO_PAUSE

    def close(self) -> None:
        """Stop drawing and leave the last state visible."""


class RunProgress:
    """The state of a run, computed from its events and their timestamps."""

    def __init__(self, name: str = "run", total: int | None = None) -> None:
        self.name = one_line(name)
        self.total = _valid_total(total)
        self.step = 0
        self.phase = "waiting to start"
        self.checkpoint: int | None = None
        self.ended = False
        self._losses: deque[float] = deque(maxlen=_RECENT_STEPS)
        self._marks: deque[tuple[int, str]] = deque(maxlen=_RECENT_STEPS)  # (step, timestamp)
        self._started_at = ""
        self._ended_at = ""
        self._estimate: Estimate | None = None
        self._outcome: Outcome | None = None

    def update(self, event: events.Event) -> None:
        """Apply the next event. Takes about a microsecond."""
        if isinstance(event, events.TrainingLog):
            self.phase = "training"
            self.step = min(event.step, _MAX_STEPS)
            self._marks.append((self.step, event.timestamp))
            if event.loss is not None:
                self._losses.append(event.loss)
        elif isinstance(event, events.CheckpointSaved):
            self.checkpoint = min(event.step, _MAX_STEPS)
            self.step = max(self.step, self.checkpoint)
        elif isinstance(event, events.TrainingPreparing):
            self.phase = one_line(event.message) or "preparing"
        elif isinstance(event, events.TrainingStarted):
            self.total = _valid_total(event.total_steps) or self.total
            self._estimate = event.estimate
            self.phase, self._started_at = "training", event.timestamp
            self._marks.append((0, event.timestamp))
        elif isinstance(event, events.TrainingResumed):
            self._marks.clear()  # the time of the outage must not count as the time of a step
            action = f"resuming from step {event.step}" if event.step else "starting again"
            self.phase = one_line(f"{action}: {event.reason or 'its worker died'}")
        elif isinstance(event, events.TrainingCompleted):
            self._end("completed", event.timestamp)
            self._outcome = outcome_of(self._estimate, event.metrics)
        elif isinstance(event, events.TrainingFailedEvent):
            self._end(one_line(f"failed: {event.error}"), event.timestamp)
        elif isinstance(event, events.TrainingCancelled):
            self._end("cancelled", event.timestamp)

    def _end(self, phase: str, timestamp: str) -> None:
        self.phase, self._ended_at, self.ended = phase, timestamp, True

    @property
    def training(self) -> bool:
        return self.phase == "training"

    @property
    def loss(self) -> float | None:
        """The latest loss; None before the first."""
        return self._losses[-1] if self._losses else None

    @property
    def trend(self) -> int:
        """The direction of the loss: -1 falling, 0 level, 1 rising.

        Compare the newer half of the recent losses with the older half. A change within two
        standard errors is noise between batches and counts as level.
        """
        half = len(self._losses) // 2
        if half == 0:
            return 0
        recent = list(self._losses)
        (older, older_error), (newer, newer_error) = _mean_and_error(recent[:half]), _mean_and_error(recent[-half:])
        change = newer - older
        noise = 2 * math.hypot(older_error, newer_error)
        if abs(change) > max(_FLAT_TREND * abs(older), noise):  # False for NaN
            return 1 if change > 0 else -1
        return 0

    @property
    def seconds_per_step(self) -> float | None:
        """The mean over the recent steps; None before the second timestamp."""
        if len(self._marks) < 2:
            return None
        (first_step, began_at), (last_step, ended_at) = self._marks[0], self._marks[-1]
        seconds = seconds_between(began_at, ended_at)
        return seconds / (last_step - first_step) if seconds is not None and last_step > first_step else None

    def speed(self) -> str:
        """Return `"1.3 s/step"` or `"24 steps/s"`; empty while it is unknown."""
        pace = self.seconds_per_step
        if not pace or pace < 0:
            return ""
        return f"{pace:.1f} s/step" if pace >= 1 else f"{1 / pace:.3g} steps/s"

    def time_left(self, since_last_step: float = 0.0) -> str:
        """Return `"1:42 left"`; empty while it is unknown."""
        pace = self.seconds_per_step
        if not pace or pace < 0 or not self.total or self.step >= self.total:
            return ""
        return f"{format_duration(max(0.0, pace * (self.total - self.step) - since_last_step))} left"

    def duration(self) -> str:
        """Return the time that the training took, `"in 1:42"`; empty before its end."""
        seconds = seconds_between(self._started_at, self._ended_at)
        return "" if seconds is None else f"in {format_duration(seconds)}"

    def estimate_verdict(self) -> str:
        return str(self._outcome) if self._outcome else ""

    def steps(self) -> str:
        return f"{self.step}/{self.total}" if self.total else str(self.step)

    def losses(self, arrows: Mapping[int, str]) -> str:
        """Return `"loss 0.0474 ↘"`, with a sign for the trend; empty before the first loss."""
        return "" if self.loss is None else f"loss {format_loss(self.loss)}{arrows[self.trend]}"

    def checkpoint_text(self) -> str:
        return "" if self.checkpoint is None else f"checkpoint {self.checkpoint}"

    def status(self, arrows: Mapping[int, str], waited: float) -> str:
        """Describe a run that is not training: its phase for `waited` seconds, or how it ended."""
        if not self.ended:
            return f"{self.name}: {self.phase} {format_duration(waited)}"
        facts = [f"step {self.steps()}", self.losses(arrows), self.duration(), self.estimate_verdict()]
        return f"{self.name}: {joined(self.phase, *(facts if self.step else ()))}"


def joined(*facts: str) -> str:
    return ", ".join(fact for fact in facts if fact)


def _mean_and_error(values: list[float]) -> tuple[float, float]:
    """Return the mean and its standard error (0 for one value). Never raises OverflowError."""
    count = len(values)
    mean = sum(values) / count
    squares = sum((value - mean) * (value - mean) for value in values)  # `** 2` would raise
    return mean, math.sqrt(squares / max(1, count - 1) / count)


def _valid_total(total: object) -> int | None:
    return min(total, _MAX_STEPS) if isinstance(total, int) and total > 0 else None
