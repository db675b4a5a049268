"""Replays of runs without a backend: a dispatcher passes events to callbacks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from arkor.callbacks.registry import CallbackRegistry
from arkor.protocol.codec import from_wire
from arkor.protocol.events import CheckpointSaved, Event, TrainingCompleted, TrainingLog, TrainingStarted
from arkor.protocol.jobs import Artifact, TrainingJob
from arkor.results.training_result import TrainingResult
from arkor.trainer.dispatcher import Dispatcher
from tests.fakes.run_server import JOB


class Client:
    """Counts the calls of `cancel_job`."""

    def __init__(self, refusals: Iterable[Exception] = ()) -> None:
        self.cancelled = 0
        self._refusals = iter(refusals)

    def cancel_job(self, job_id: str) -> None:
        self.cancelled += 1
        if (refusal := next(self._refusals, None)) is not None:
            raise refusal


def checkpoint(step: int) -> CheckpointSaved:
    return CheckpointSaved("j", "t", step, (Artifact("checkpoint", step),))


def log(step: int, loss: float | None = None, eval_loss: float | None = None) -> TrainingLog:
    return TrainingLog("j", "t", step, loss, eval_loss)


def logs(losses: Sequence[float | None]) -> list[Event]:
    return [log(step, loss) for step, loss in enumerate(losses, 1)]


def replay(callbacks: Any, events: Iterable[Event], client: Any = None) -> Dispatcher:
    """Dispatch a start event and the given events."""
    job: TrainingJob = from_wire(TrainingJob, JOB)
    client = client or Client()
    dispatcher = Dispatcher(job, CallbackRegistry(callbacks), "raise", lambda: client)
    for event in (TrainingStarted("j", "t"), *events):
        dispatcher.dispatch(event)
    return dispatcher


def completed(dispatcher: Dispatcher, there: Sequence[int]) -> TrainingResult:
    """Complete the run, with the checkpoints at the steps `there`."""
    dispatcher.dispatch(TrainingCompleted("j", "t", artifacts=tuple(Artifact("checkpoint", step) for step in there)))
    dispatcher.conclude()
    assert dispatcher.result is not None
    return dispatcher.result
