"""What is known of a run in progress, and the words for it.

`RunProgress` takes events in and gives words out; who shows them, and when, is the business of the displays.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping

from arkor.formatting import format_duration, format_loss, one_line, seconds_between
from arkor.protocol.estimates import Estimate, Outcome, outcome_of
from arkor.protocol.events import (
    CheckpointSaved,
    Event,
    TrainingCancelled,
    TrainingCompleted,
    TrainingFailedEvent,
    TrainingLog,
    TrainingPreparing,
    TrainingResumed,
    TrainingStarted,
)

_RECENT_STEPS = 24  # that speed and trend are taken from
_MAX_STEPS = 2**53  # a backend that says more is no worse off, and nothing here overflows
_FLAT_TREND = 0.01  # a change of less than this share is none, however sure

#: How a trend is shown: as an arrow, in words, or not at all.
ARROWS = {-1: " ↘", 0: " →", 1: " ↗"}
WORDS = {-1: " (falling)", 0: "", 1: " (rising)"}
NO_ARROWS = {-1: "", 0: "", 1: ""}


class RunProgress:
    """Where a run stands, as far as its events have told. Speed comes from their time stamps, so a replay is exact."""

    def __init__(self, name: str = "run", total: int | None = None) -> None:
        self.name = one_line(name)
        self.total = _total(total)
        self.step = 0
        self.phase = "waiting to start"
        self.checkpoint: int | None = None
        self.ended = False
        self._losses: deque[float] = deque(maxlen=_RECENT_STEPS)
        self._marks: deque[tuple[int, str]] = deque(maxlen=_RECENT_STEPS)
        self._started_at = ""
        self._estimate: Estimate | None = None
        self._last_at = ""
        self._outcome: Outcome | None = None

    def update(self, event: Event) -> None:
        """Take in the next event; costs about a microsecond."""
        if isinstance(event, TrainingLog):
            self._log(event)
        elif isinstance(event, CheckpointSaved):
            self.checkpoint = min(event.step, _MAX_STEPS)
            self.step = max(self.step, self.checkpoint)
        elif isinstance(event, TrainingPreparing):
            self.phase = one_line(event.message) or "preparing"
        elif isinstance(event, TrainingStarted):
            self.total = _total(event.total_steps) or self.total
            self._estimate = event.estimate
            self.phase, self._started_at = "training", event.timestamp
            self._marks.append((0, event.timestamp))
        elif isinstance(event, TrainingResumed):
            self._marks.clear()  # the time that the outage took is no step's
            self.phase = one_line(f"{_from_step(event.step)}: {event.reason or 'its worker died'}")
        elif isinstance(event, (TrainingCompleted, TrainingFailedEvent, TrainingCancelled)):
            self._end(event)

    def _log(self, event: TrainingLog) -> None:
        self.phase = "training"
        self.step = min(event.step, _MAX_STEPS)
        self._marks.append((self.step, event.timestamp))
        if event.loss is not None:
            self._losses.append(event.loss)

    def _end(self, event: TrainingCompleted | TrainingFailedEvent | TrainingCancelled) -> None:
        self.ended, self._last_at = True, event.timestamp
        if isinstance(event, TrainingCompleted):
            self.phase = "completed"
            self._outcome = outcome_of(self._estimate, event.metrics)
        elif isinstance(event, TrainingFailedEvent):
            self.phase = one_line(f"failed: {event.error}")
        else:
            self.phase = "cancelled"

    # The words

    @property
    def training(self) -> bool:
        return self.phase == "training"

    @property
    def loss(self) -> float | None:
        """The latest loss; None before the first."""
        return self._losses[-1] if self._losses else None

    @property
    def trend(self) -> int:
        """Where the loss is going, newer half of the latest ones against the older: -1 down, 1 up, 0 level.

        Batches differ: what is within two standard errors of the difference is no trend.
        """
        half = len(self._losses) // 2
        if half == 0:
            return 0
        latest = list(self._losses)
        (older, error), (newer, other_error) = _mean(latest[:half]), _mean(latest[-half:])
        change = newer - older
        if abs(change) > max(_FLAT_TREND * abs(older), 2 * math.hypot(error, other_error)):  # never so of a NaN
            return 1 if change > 0 else -1
        return 0

    @property
    def seconds_per_step(self) -> float | None:
        """Over the latest steps; None before the second mark."""
        if len(self._marks) < 2:
            return None
        (first, began), (last, ended) = self._marks[0], self._marks[-1]
        seconds = seconds_between(began, ended)
        return seconds / (last - first) if seconds is not None and last > first else None

    def speed(self) -> str:
        """`"1.3 s/step"`, `"24 steps/s"`, or nothing yet."""
        pace = self.seconds_per_step
        if not pace or pace < 0:
            return ""
        return f"{pace:.1f} s/step" if pace >= 1 else f"{1 / pace:.3g} steps/s"

    def time_left(self, since_last_step: float = 0.0) -> str:
        """`"1:42 left"`, or nothing as long as nobody can know."""
        pace = self.seconds_per_step
        if not pace or pace < 0 or not self.total or self.step >= self.total:
            return ""
        return f"{format_duration(max(0.0, pace * (self.total - self.step) - since_last_step))} left"

    def duration(self) -> str:
        """How long the training took, once it has ended: `"in 1:42"`."""
        seconds = seconds_between(self._started_at, self._last_at)
        return "" if seconds is None else f"in {format_duration(seconds)}"

    def estimate_verdict(self) -> str:
        """Of a run that was checked before, how good the estimate was."""
        return str(self._outcome) if self._outcome else ""

    def steps(self) -> str:
        return f"{self.step}/{self.total}" if self.total else str(self.step)

    def losses(self, arrows: Mapping[int, str]) -> str:
        """`"loss 0.0474 ↘"`; `arrows` are the signs of the trends. Nothing before the first."""
        return "" if self.loss is None else f"loss {format_loss(self.loss)}{arrows[self.trend]}"

    def checkpoint_text(self) -> str:
        return "" if self.checkpoint is None else f"checkpoint {self.checkpoint}"

    def status(self, arrows: Mapping[int, str], waited: float) -> str:
        """Where the run stands when it does not train: what it has been at for `waited` seconds, or how it ended."""
        if not self.ended:
            return f"{self.name}: {self.phase} {format_duration(waited)}"
        facts = (
            [f"step {self.steps()}", self.losses(arrows), self.duration(), self.estimate_verdict()] if self.step else []
        )
        return f"{self.name}: {', '.join(fact for fact in (self.phase, *facts) if fact)}"


def _mean(values: list[float]) -> tuple[float, float]:
    """The mean, and its standard error, 0 of a single value. Neither raises, however large the values are."""
    count = len(values)
    mean = sum(values) / count
    squares = sum((value - mean) * (value - mean) for value in values)
    return mean, math.sqrt(squares / max(1, count - 1) / count)


def _from_step(step: int) -> str:
    return f"resuming from step {step}" if step else "starting again"


def _total(total: object) -> int | None:
    """How many steps there will be, if what was said can be that."""
    return min(total, _MAX_STEPS) if isinstance(total, int) and total > 0 else None
