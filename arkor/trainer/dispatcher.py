"""Dispatch of events to callbacks: the job, the contexts, and exceptions of callbacks."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import attrs

from arkor.callbacks import contexts
from arkor.callbacks.registry import CallbackRegistry
from arkor.client.api import CloudApiClient
from arkor.protocol import events
from arkor.protocol.chat import Adapter
from arkor.protocol.estimates import Estimate, outcome_of
from arkor.protocol.jobs import JobStatus, TrainingJob
from arkor.results.history import History
from arkor.results.training_result import TrainingResult
from arkor.trainer.watch_options import CallbackErrors

logger = logging.getLogger("arkor")


class Dispatcher:
    """Updates `job` with each event and calls the callbacks.

    `result` stays None until the run has ended. It is set before the callbacks of the terminal
    event are called, so that an exception in one cannot lose it. `stop_reason` is set when a
    callback asks to end `wait()`.
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
        self._control = contexts.RunControl(lambda: client().cancel_job(self.job.id), self._stop_waiting)

    def dispatch(self, event: events.Event) -> str | None:
        """Call the callbacks; return the reason if one raised and the stream must reconnect."""
        handler = _HANDLERS.get(type(event))
        return handler(self, event) if handler else None

    def finish(self, job: TrainingJob) -> None:
        """Set the result of a run that ended without a terminal event."""
        self.job = job
        self.result = TrainingResult(job, history=self.history)

    def conclude(self, error: BaseException | None = None) -> None:
        """Call `on_finished`, which may replace the result that `wait()` returns."""

        def call(on_finished: Callable[[contexts.FinishedContext], Any]) -> None:
            returned = on_finished(contexts.FinishedContext(self.job, self.result, error))
            if isinstance(returned, TrainingResult):
                self.result = returned

        try:
            self._registry.each("on_finished", call)
        except Exception as raised:
            if self._callback_errors == "raise" and error is None:
                raise
            _log_callback_error("on_finished", raised)

    def _stop_waiting(self, reason: str) -> None:
        self.stop_reason = reason

    def _on_started(self, event: events.TrainingStarted) -> str | None:
        self._advance(JobStatus.RUNNING, started_at=event.timestamp)
        self._estimate = event.estimate
        return self._call("on_started", contexts.StartedContext(self.job, control=self._control))

    def _on_log(self, event: events.TrainingLog) -> str | None:
        numbers = event.step, event.loss, event.eval_loss, event.learning_rate, event.epoch, event.samples_per_second
        self.history.add(*numbers)
        if not self._registry.has("on_log"):
            return None
        return self._call("on_log", contexts.TrainingLogContext(*numbers, self.job, control=self._control))

    def _on_checkpoint(self, event: events.CheckpointSaved) -> str | None:
        adapter = Adapter("checkpoint", self.job.id, event.step)
        infer, control = self._infer(adapter), self._control
        context = contexts.CheckpointContext(event.step, adapter, self.job, infer, event.artifacts, control=control)
        return self._call("on_checkpoint", context)

    def _on_completed(self, event: events.TrainingCompleted) -> str | None:
        self._advance(JobStatus.COMPLETED, completed_at=event.timestamp)
        outcome = outcome_of(self._estimate, event.metrics)
        self.result = TrainingResult(self.job, event.artifacts, history=self.history, estimate=outcome)
        infer = self._infer(Adapter("final", self.job.id))
        return self._call("on_completed", contexts.CompletedContext(self.job, event.artifacts, infer, event.metrics))

    def _on_failed(self, event: events.TrainingFailedEvent) -> str | None:
        self._advance(JobStatus.FAILED, completed_at=event.timestamp, error=event.error)
        self.result = TrainingResult(self.job, event.artifacts, history=self.history)
        return self._call("on_failed", contexts.FailedContext(self.job, event.error, event.step))

    def _on_cancelled(self, event: events.TrainingCancelled) -> None:
        self._advance(JobStatus.CANCELLED, completed_at=event.timestamp)
        self.result = TrainingResult(self.job, event.artifacts, history=self.history)

    def _infer(self, adapter: Adapter) -> contexts.Infer:
        return contexts.Infer(self._client(), adapter, abort_signal=self._abort_signal)

    def _advance(self, status: JobStatus, **changes: Any) -> None:
        self.job = attrs.evolve(self.job, status=status, **changes)

    def _call(self, name: str, context: Any) -> str | None:
        try:
            self._registry.call(name, context)
        except Exception as error:
            if self._callback_errors == "raise":
                raise
            _log_callback_error(name, error)
            if self._callback_errors == "reconnect":
                return f"the callback {name} raised {type(error).__name__}"
        return None


def _log_callback_error(name: str, error: Exception) -> None:
    """Log the exception with a traceback that starts in the callback, without our own frames."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals.get("__name__") in (__name__, CallbackRegistry.__module__):
        trace = trace.tb_next
    message = "the callback %s raised an exception; the run itself is not affected"
    logger.error(message, name, exc_info=(type(error), error, trace or error.__traceback__))


_HANDLERS: dict[type[Any], Callable[[Dispatcher, Any], str | None]] = {
    events.TrainingStarted: Dispatcher._on_started,
    events.TrainingLog: Dispatcher._on_log,
    events.CheckpointSaved: Dispatcher._on_checkpoint,
    events.TrainingCompleted: Dispatcher._on_completed,
    events.TrainingFailedEvent: Dispatcher._on_failed,
    events.TrainingCancelled: Dispatcher._on_cancelled,
}
