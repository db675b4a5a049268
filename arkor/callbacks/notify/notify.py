"""`Notify`: post messages about a run to Slack, Discord, Teams or a webhook."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from arkor.callbacks.contexts import CheckpointContext, FinishedContext, StartedContext, TrainingLogContext
from arkor.callbacks.notify.delivery_queue import DeliveryQueue
from arkor.callbacks.notify.message_formats import MESSAGE_FORMATS, Notification, detect_kind
from arkor.errors import InvalidConfig
from arkor.formatting import seconds_between
from arkor.protocol.jobs import TrainingJob
from arkor.protocol.validation import Integer, is_finite

logger = logging.getLogger("arkor")

EVENTS = ("started", "checkpoint", "completed", "failed", "cancelled")


class Notify:
    """Post a message to `url` on each of the events `on`, without delaying or failing the run.

    The message format follows from the URL's host, or from `kind`: `"slack"`, `"discord"`,
    `"teams"` (an adaptive card), `"plain"` (JSON). A background thread sends the messages, with up
    to `attempts` attempts of `timeout` seconds each. At the end of a run `wait()` waits up to
    `flush_timeout` seconds for undelivered messages. The URL is a secret and is never shown.

    Raise `InvalidConfig` for an invalid argument.
    """

    def __init__(
        self,
        url: str | None,
        on: Iterable[str] | str = ("completed", "failed"),
        *,
        kind: str | None = None,
        timeout: float = 10.0,
        attempts: int = 4,
        flush_timeout: float = 10.0,
    ) -> None:
        detected = detect_kind(url)
        if kind is not None and kind not in tuple(MESSAGE_FORMATS):
            raise InvalidConfig("Notify.kind", f"must be one of {', '.join(map(repr, MESSAGE_FORMATS))}, not {kind!r}")
        self.on = (on,) if isinstance(on, str) or not isinstance(on, Iterable) else tuple(on)
        for event in self.on:
            if event not in EVENTS:
                raise InvalidConfig("Notify.on", f"{event!r} is not an event", f"use {', '.join(map(repr, EVENTS))}")
        for name, seconds in (("timeout", timeout), ("flush_timeout", flush_timeout)):
            if not is_finite(seconds) or not 0 < seconds <= 3600:
                raise InvalidConfig(f"Notify.{name}", f"must be seconds, above 0 and at most 3600, not {seconds!r}")
        Integer(1)("Notify.attempts", attempts)
        self.kind = kind or detected
        self._flush_timeout = flush_timeout
        self._queue = DeliveryQueue(str(url), f"Notify ({self.kind})", timeout=timeout, attempts=attempts)
        self._job_id: str | None = None
        self._step: int | None = None
        self._loss: float | None = None

    def __repr__(self) -> str:
        return f"Notify(<{self.kind}>, on={self.on!r})"

    def on_started(self, ctx: StartedContext) -> None:
        self._job_id = None  # forget the numbers of an earlier `wait()` for the same run
        self._track(ctx.job)
        self._send("started", ctx.job)

    def on_log(self, ctx: TrainingLogContext) -> None:
        """Record step and loss for later messages."""
        self._track(ctx.job, ctx.step)
        if ctx.loss is not None:
            self._loss = ctx.loss

    def on_checkpoint(self, ctx: CheckpointContext) -> None:
        self._track(ctx.job, ctx.step)
        self._send("checkpoint", ctx.job)

    def on_finished(self, ctx: FinishedContext) -> None:
        """Send the final status, unless the run continues, and wait for undelivered messages."""
        if ctx.result is None:
            return
        self._track(ctx.job)
        self._send(str(ctx.job.status), ctx.job)
        if not self._queue.flush(self._flush_timeout):
            logger.warning("Notify (%s): not everything was delivered in %g s", self.kind, self._flush_timeout)

    def _track(self, job: TrainingJob, step: int | None = None) -> None:
        """Remember the step; forget the numbers of another run."""
        if job.id != self._job_id:
            self._job_id, self._step, self._loss = job.id, None, None
        self._step = self._step if step is None else step

    def _send(self, event: str, job: TrainingJob) -> None:
        if event in self.on:
            seconds = seconds_between(job.started_at, job.completed_at)
            notification = Notification(event, job, self._step, self._loss, seconds)
            self._queue.send(event, MESSAGE_FORMATS[self.kind](notification))
