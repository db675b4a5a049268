"""No display raises for any text or number from a backend; that would end the wait."""

from __future__ import annotations

import io
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from arkor.display.notebook import NotebookProgress
from arkor.display.plain import PlainProgress
from arkor.display.run_progress import RunProgress
from arkor.display.terminal import TerminalProgress
from arkor.protocol.events import (
    CheckpointSaved,
    Event,
    TrainingCompleted,
    TrainingFailedEvent,
    TrainingLog,
    TrainingPreparing,
    TrainingResumed,
    TrainingStarted,
    TrainingWarning,
)
from arkor.results.history import History

TIMES = st.sampled_from(["", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999Z", "2026-01-01T00:00:00", "yesterday"])
STEPS = st.integers(0, 100) | st.sampled_from([2**63, 10**400])
NUMBERS = st.none() | st.floats()
EVENTS = st.lists(
    st.builds(TrainingLog, st.just("j"), TIMES, STEPS, NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS)
    | st.builds(TrainingStarted, st.just("j"), TIMES, st.none() | st.integers(-3, 100) | STEPS)
    | st.builds(TrainingPreparing, st.just("j"), TIMES, st.text())
    | st.builds(TrainingWarning, st.just("j"), TIMES, st.text())
    | st.builds(TrainingResumed, st.just("j"), TIMES, STEPS, st.text())
    | st.builds(CheckpointSaved, st.just("j"), TIMES, STEPS)
    | st.builds(TrainingFailedEvent, st.just("j"), TIMES, st.text())
    | st.builds(TrainingCompleted, st.just("j"), TIMES),
    max_size=8,
)


class Drawn(TerminalProgress):
    """Draws after each event."""

    def on_event(self, event: Event) -> None:
        super().on_event(event)
        self._drawn_at = 0.0
        with self._lock:
            self._draw()


class Cell(NotebookProgress):
    """Draws after each event, without a notebook."""

    def on_event(self, event: Event) -> None:
        super().on_event(event)
        self._draw()

    def _publish(self, line: str, page: str) -> None:
        assert line


DISPLAYS: list[Callable[[RunProgress], PlainProgress | TerminalProgress | NotebookProgress]] = [
    lambda run_progress: PlainProgress(io.StringIO(), run_progress, every=0),
    lambda run_progress: Drawn(io.StringIO(), run_progress),
    lambda run_progress: Cell(run_progress, History(), "j"),
]


@settings(deadline=None)
@given(EVENTS, st.text(), st.sampled_from(DISPLAYS))
def test_whatever_a_backend_says_can_be_shown(
    events: list[Event],
    name: str,
    display: Callable[[RunProgress], PlainProgress | TerminalProgress | NotebookProgress],
) -> None:
    with display(RunProgress(name)) as progress:
        for event in events:
            progress.on_event(event)
            with progress.paused():
                pass
