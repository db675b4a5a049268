"""`Notify`: tells Slack, Discord, Teams or a webhook of yours how a run fares."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

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
    """Post a message to `url` on each of the events `on`; nothing of it is ever in the way of the run or of `wait()`.

    How the message is written follows from the URL's host, or from `kind`: `"slack"`, `"discord"`, `"teams"` (a
    workflow), `"teams-connector"` (an Office 365 connector), `"plain"` (JSON). It is sent on a thread of its own; one
    attempt takes `timeout` seconds at most, there are `attempts` of them, and at the end of a run `wait()` stays up
    to `flush_timeout` seconds for what is still on its way. The URL is a secret, and never shown.

    Raises `InvalidConfig`.
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
        found = detect_kind(url)
        if kind is not None and kind not in tuple(MESSAGE_FORMATS):
            raise InvalidConfig("Notify.kind", f"must be one of {', '.join(map(repr, MESSAGE_FORMATS))}, not {kind!r}")
        self.on = _events(on)
        _check_seconds("timeout", timeout)
        _check_seconds("flush_timeout", flush_timeout)
        Integer(1)("Notify.attempts", attempts)
        self.kind = kind or found
        self._flush_timeout = flush_timeout
        self._queue = DeliveryQueue(str(url), f"Notify ({self.kind})", timeout=timeout, attempts=attempts)
        self._job_id: str | None = None
        self._step: int | None = None
        self._loss: float | None = None

    def __repr__(self) -> str:
        return f"Notify(<{self.kind}>, on={self.on!r})"

    def on_started(self, ctx: StartedContext) -> None:
        """Tell it, if `on` has it."""
        self._job_id, self._step, self._loss = ctx.job.id, None, None
        self._send("started", ctx.job)

    def on_log(self, ctx: TrainingLogContext) -> None:
        """Remember the last loss."""
        self._track(ctx.job)
        self._step = ctx.step
        if ctx.loss is not None:
            self._loss = ctx.loss

    def on_checkpoint(self, ctx: CheckpointContext) -> None:
        """Tell it, if `on` has it."""
        self._track(ctx.job)
        self._step = ctx.step
        self._send("checkpoint", ctx.job)

    def on_finished(self, ctx: FinishedContext) -> None:
        """Tell how the run ended, if it has, and see off what is on its way."""
        if ctx.result is None:
            return
        self._track(ctx.job)
        self._send(str(ctx.job.status), ctx.job)
        if not self._queue.flush(self._flush_timeout):
            logger.warning("Notify (%s): not everything was delivered in %g s", self.kind, self._flush_timeout)

    def _track(self, job: TrainingJob) -> None:
        if job.id != self._job_id:
            self._job_id, self._step, self._loss = job.id, None, None

    def _send(self, event: str, job: TrainingJob) -> None:
        if event in self.on:
            seconds = seconds_between(job.started_at, job.completed_at)
            notification = Notification(event, job, self._step, self._loss, seconds)
            self._queue.send(event, MESSAGE_FORMATS[self.kind](notification))


def _events(on: object) -> tuple[str, ...]:
    events = (on,) if isinstance(on, str) else tuple(on) if isinstance(on, Iterable) else (on,)
    for event in events:
        if event not in EVENTS:
            raise InvalidConfig("Notify.on", f"there is no {event!r}; there are {', '.join(map(repr, EVENTS))}")
    return events


def _check_seconds(name: str, value: Any) -> None:
    if not is_finite(value) or not 0 < value <= 3600:
        raise InvalidConfig(f"Notify.{name}", f"must be seconds, above 0 and at most 3600, not {value!r}")
