"""`EarlyStopping`: stop a run whose loss has diverged, is too high, or no longer falls."""

from __future__ import annotations

import logging
import math
from collections import deque
from typing import get_args

import attrs
from attrs import define, field

from arkor.callbacks.contexts import CheckpointContext, FinishedContext, StartedContext, TrainingLogContext
from arkor.errors import BackendUnavailable, CloudApiError, InvalidConfig, is_transient
from arkor.protocol.best_checkpoint import BestCheckpoint, BestCheckpointTracker, Metric
from arkor.protocol.chat import Adapter
from arkor.protocol.jobs import Artifact
from arkor.protocol.validation import Integer, Number, is_finite
from arkor.results.training_result import TrainingResult

logger = logging.getLogger("arkor")


@define(eq=False)
class EarlyStopping:
    """Stop a run, and the wait for it, when its metrics show that further training is useless.

    A non-finite training loss always stops the run, and so does a non-finite value of `on`. Finite
    values of `on` are averaged over the last `window`; the run stops when the mean exceeds
    `ceiling`, or when it has not fallen by more than `min_delta` for `patience` values in a row.

    With `cancel=False` the run continues and only the wait ends: `wait()` raises `TrainerAborted`.

    `stopped` is the reason, or None. `best` is the best checkpoint by `on`; in the result, the best
    one that still exists. An instance can watch one run at a time. Raise `InvalidConfig` for an
    invalid argument.
    """

    ceiling: float | None = None
    window: int = 1
    patience: int | None = None
    min_delta: float = 0.0
    on: Metric = "loss"
    cancel: bool = True
    stopped: str | None = field(default=None, init=False)
    _job_id: str | None = field(default=None, init=False, repr=False)
    _stop_requested: bool = field(default=False, init=False, repr=False)
    _trend: _LossTrend = field(init=False, repr=False)
    _checkpoints: BestCheckpointTracker = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        if self.ceiling is not None and not is_finite(self.ceiling):
            raise InvalidConfig("EarlyStopping.ceiling", f"must be a finite number, not {self.ceiling!r}")
        if self.patience is not None:
            Integer(1)("EarlyStopping.patience", self.patience)
        Integer(1)("EarlyStopping.window", self.window)
        Number(minimum=0)("EarlyStopping.min_delta", self.min_delta)
        if self.on not in get_args(Metric):
            raise InvalidConfig("EarlyStopping.on", f'must be "loss" or "eval_loss", not {self.on!r}')
        if not isinstance(self.cancel, bool):
            raise InvalidConfig("EarlyStopping.cancel", f"must be True or False, not {self.cancel!r}")
        self._begin(None)

    @property
    def best(self) -> BestCheckpoint | None:
        """The best checkpoint so far; None if no checkpoint has a value."""
        return self._best_checkpoint(self._checkpoints.best(self.on))

    def on_started(self, ctx: StartedContext) -> None:
        """Reset the state for this run."""
        self._begin(ctx.job.id)
        if self.on == "eval_loss" and not ctx.job.config.evaluates:
            logger.warning("EarlyStopping watches eval_loss, but the run is not configured to evaluate: set eval_steps")

    def on_log(self, ctx: TrainingLogContext) -> None:
        """Record the metrics; request the stop once there is a reason."""
        self._begin_if_new(ctx.job.id)
        self._checkpoints.log(ctx.step, ctx.loss, ctx.eval_loss)
        if self.stopped is None and (reason := self._stop_reason(ctx.loss, ctx.eval_loss)):
            self.stopped = f"step {ctx.step}: {reason}"
            logger.warning("early stopping at %s", self.stopped)
        if self.stopped is not None and not self._stop_requested:
            self._request_stop(ctx)

    def on_checkpoint(self, ctx: CheckpointContext) -> None:
        """Record the checkpoint as a candidate for the best one."""
        self._begin_if_new(ctx.job.id)
        self._checkpoints.checkpoint(ctx.step)

    def on_finished(self, ctx: FinishedContext) -> TrainingResult | None:
        """Add the best existing checkpoint to the result."""
        if ctx.result is None or ctx.job.id != self._job_id:
            return None
        checkpoints = [
            item for item in ctx.result.artifacts if isinstance(item, Artifact) and item.kind == "checkpoint"
        ]
        steps = [item.step for item in checkpoints if item.step is not None]
        best = self._checkpoints.best(self.on, steps or None)
        return attrs.evolve(ctx.result, best=self._best_checkpoint(best) or ctx.result.best)

    def _begin(self, job_id: str | None) -> None:
        self._job_id, self.stopped, self._stop_requested = job_id, None, False
        self._trend = _LossTrend(self.ceiling, self.patience, self.min_delta, deque(maxlen=self.window))
        self._checkpoints = BestCheckpointTracker()

    def _begin_if_new(self, job_id: str) -> None:
        if job_id != self._job_id:
            self._begin(job_id)

    def _stop_reason(self, loss: float | None, eval_loss: float | None) -> str | None:
        if loss is not None and not math.isfinite(loss):
            return f"the loss is {loss}"
        value = loss if self.on == "loss" else eval_loss
        return None if value is None else self._trend.add(value, self.on)

    def _request_stop(self, ctx: TrainingLogContext) -> None:
        if not self.cancel:
            ctx.stop_waiting(f"early stopping at {self.stopped}")
            self._stop_requested = True
            return
        try:
            ctx.cancel()
            self._stop_requested = True
        except (CloudApiError, BackendUnavailable) as error:
            self._stop_requested = isinstance(error, CloudApiError) and not is_transient(error.status)
            remedy = "" if self._stop_requested else "; trying again at the next log"
            logger.warning("the run could not be stopped: %s%s", error, remedy)

    def _best_checkpoint(self, best: tuple[float, int] | None) -> BestCheckpoint | None:
        if best is None or self._job_id is None:
            return None
        value, step = best
        return BestCheckpoint(step, self.on, value, Adapter("checkpoint", self._job_id, step))


@define
class _LossTrend:
    """The moving mean of a metric and the number of values since its last improvement."""

    _ceiling: float | None
    _patience: int | None
    _min_delta: float
    _recent: deque[float]
    _best: float = math.inf
    _stalled: int = 0

    def add(self, value: float, name: str) -> str | None:
        """Add a value; return the reason to stop, or None."""
        if not math.isfinite(value):
            return f"the {name} is {value}"
        self._recent.append(value)
        count = len(self._recent)
        if count != self._recent.maxlen:
            return None
        mean = sum(self._recent) / count
        subject = f"the {name}" if count == 1 else f"the mean of the last {count} values of {name}"
        if self._ceiling is not None and mean > self._ceiling:
            return f"{subject} is {mean:g}, above the ceiling of {self._ceiling:g}"
        if mean < self._best - self._min_delta:
            self._best, self._stalled = mean, 0
            return None
        self._stalled += 1
        if self._patience is None or self._stalled < self._patience:
            return None
        return f"{subject} has not improved on {self._best:g} for {self._stalled} values"
