"""Events → callbacks, one at a time: the job as it stands, the context of each moment, what a raising callback means.

Where events come from, and who waits for them, is the business of `trainer.py` and `client/streaming/event_stream.py`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, Literal

import attrs

from arkor.callbacks.contexts import (
    CheckpointContext,
    CompletedContext,
    FailedContext,
    FinishedContext,
    Infer,
    StartedContext,
    TrainingLogContext,
)
from arkor.callbacks.registry import CallbackRegistry
from arkor.callbacks.run_control import RunControl
from arkor.client.api import CloudApiClient
from arkor.client.streaming.connection import StreamFault
from arkor.protocol.chat import Adapter
from arkor.protocol.estimates import Estimate, outcome_of
from arkor.protocol.events import (
    CheckpointSaved,
    Event,
    TrainingCancelled,
    TrainingCompleted,
    TrainingFailedEvent,
    TrainingLog,
    TrainingStarted,
)
from arkor.protocol.jobs import JobStatus, TrainingJob
from arkor.results.history import History
from arkor.results.training_result import TrainingResult

logger = logging.getLogger("arkor")

CallbackErrors = Literal["reconnect", "raise", "log"]


class Dispatcher:
    """Keeps the `job` up to date with its events; `result` is None until the run has ended.

    The result is there before the callbacks of the terminal event are called, so that no exception can cost it.
    `stop_reason` is why a callback wants `wait()` to end, None as long as none does.
    """

    def __init__(
        self,
        job: TrainingJob,
        registry: CallbackRegistry,
        callback_errors: CallbackErrors,
        client: Callable[[], CloudApiClient],
        abort_signal: threading.Event | None = None,
    ) -> None:
        self.job = job
        self.result: TrainingResult | None = None
        self.history = History()
        self.stop_reason: str | None = None
        self._estimate: Estimate | None = None
        self._registry = registry
        self._callback_errors = callback_errors
        self._client = client
        self._abort_signal = abort_signal
        self._control = RunControl(cancel=lambda: client().cancel_job(self.job.id), stop_waiting=self._stop_waiting)

    def dispatch(self, event: Event) -> StreamFault | None:
        """Hand one event to its callbacks; a fault asks for a reconnect behind it."""
        handler = _HANDLERS.get(type(event))
        return handler(self, event) if handler else None

    def finish(self, job: TrainingJob) -> None:
        """The run has ended without a terminal event; this is how its job stands."""
        self.job = job
        self.result = TrainingResult(job, history=self.history)

    def conclude(self, error: BaseException | None = None) -> None:
        """`wait()` is about to return, or to raise `error`. What callbacks found out is added to the result."""
        try:
            self._registry.each("on_finished", lambda function: self._add(function, error))
        except Exception as raised:
            if self._callback_errors == "raise" and error is None:
                raise
            _log_callback_error("on_finished", raised)

    def _add(self, on_finished: Callable[[FinishedContext], Any], error: BaseException | None) -> None:
        added = on_finished(FinishedContext(self.job, self.result, error))
        if isinstance(added, TrainingResult):
            self.result = added

    def _stop_waiting(self, reason: str) -> None:
        self.stop_reason = reason

    def _on_started(self, event: TrainingStarted) -> StreamFault | None:
        self._advance(JobStatus.RUNNING, started_at=event.timestamp)
        self._estimate = event.estimate
        return self._call("on_started", StartedContext(self.job, control=self._control))

    def _on_log(self, event: TrainingLog) -> StreamFault | None:
        numbers = event.step, event.loss, event.eval_loss, event.learning_rate, event.epoch, event.samples_per_second
        self.history.add(*numbers)
        if not self._registry.has("on_log"):
            return None
        return self._call("on_log", TrainingLogContext(*numbers, self.job, control=self._control))

    def _on_checkpoint(self, event: CheckpointSaved) -> StreamFault | None:
        adapter = Adapter("checkpoint", self.job.id, event.step)
        infer = self._infer(adapter)
        control = self._control
        context = CheckpointContext(event.step, adapter, self.job, infer, event.artifacts, control=control)
        return self._call("on_checkpoint", context)

    def _on_completed(self, event: TrainingCompleted) -> StreamFault | None:
        self._advance(JobStatus.COMPLETED, completed_at=event.timestamp)
        outcome = outcome_of(self._estimate, event.metrics)
        self.result = TrainingResult(self.job, event.artifacts, history=self.history, estimate=outcome)
        infer = self._infer(Adapter("final", self.job.id))
        return self._call("on_completed", CompletedContext(self.job, event.artifacts, infer))

    def _on_failed(self, event: TrainingFailedEvent) -> StreamFault | None:
        self._advance(JobStatus.FAILED, completed_at=event.timestamp, error=event.error)
        self.result = TrainingResult(self.job, event.artifacts, history=self.history)
        return self._call("on_failed", FailedContext(self.job, event.error))

    def _on_cancelled(self, event: TrainingCancelled) -> None:
        self._advance(JobStatus.CANCELLED, completed_at=event.timestamp)
        self.result = TrainingResult(self.job, event.artifacts, history=self.history)

    def _infer(self, adapter: Adapter) -> Infer:
        return Infer(self._client(), adapter, abort_signal=self._abort_signal)

    def _advance(self, status: JobStatus, **changes: Any) -> None:
        self.job = attrs.evolve(self.job, status=status, **changes)

    def _call(self, name: str, context: Any) -> StreamFault | None:
        try:
            self._registry.call(name, context)
        except Exception as error:
            if self._callback_errors == "raise":
                raise
            _log_callback_error(name, error)
            if self._callback_errors == "reconnect":
                return StreamFault(f"the callback {name} raised {type(error).__name__}")
        return None


def _log_callback_error(name: str, error: Exception) -> None:
    """Log it from the callback on: how we came to call it says nothing to its author."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals.get("__name__") in (__name__, CallbackRegistry.__module__):
        trace = trace.tb_next
    sentence = "the callback %s raised; the run itself is not touched by it"
    logger.error(sentence, name, exc_info=(type(error), error, trace or error.__traceback__))


_HANDLERS: dict[type[Any], Callable[[Dispatcher, Any], StreamFault | None]] = {
    TrainingStarted: Dispatcher._on_started,
    TrainingLog: Dispatcher._on_log,
    CheckpointSaved: Dispatcher._on_checkpoint,
    TrainingCompleted: Dispatcher._on_completed,
    TrainingFailedEvent: Dispatcher._on_failed,
    TrainingCancelled: Dispatcher._on_cancelled,
}
