"""`EarlyStopping`: ends a run whose loss has diverged, is too high, or has stopped falling.

The decision depends on the logged numbers alone: the same log gives the same one, live or replayed.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from typing import get_args

import attrs
from attrs import define, field

from arkor.callbacks.contexts import CheckpointContext, FinishedContext, StartedContext, TrainingLogContext
from arkor.errors import BackendUnavailable, CloudApiError, InvalidConfig
from arkor.protocol.best_checkpoint import BestCheckpoint, BestCheckpointTracker, Metric
from arkor.protocol.chat import Adapter
from arkor.protocol.jobs import Artifact
from arkor.protocol.validation import Integer, Number, is_finite
from arkor.results.training_result import TrainingResult

logger = logging.getLogger("arkor")


@define(eq=False)
class EarlyStopping:
    """Stop a run, and the wait for it, when its numbers say that the rest would be wasted.

    A training loss that is not finite always stops it, and so does a value of `on` that is not. Of the other finite
    values of `on`, the mean of the last `window` is judged, as soon as there are so many: it stops the run when it is
    above `ceiling`, or when `patience` values in a row did not bring it lower by more than `min_delta`.

    With `cancel=False` the run goes on and only the waiting ends: `wait()` raises `TrainerAborted`.

    `stopped` is the reason, None as long as there is none; `best` is the best checkpoint seen, by `on`, and in the
    result the best that the run still has. One object watches one run at a time. Raises `InvalidConfig`.
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
        """The best checkpoint seen so far; None when no checkpoint has a value."""
        return self._best_checkpoint(self._checkpoints.best(self.on))

    def on_started(self, ctx: StartedContext) -> None:
        """A run begins, or its history is told from the start."""
        self._begin(ctx.job.id)
        config = ctx.job.config
        if self.on == "eval_loss" and config.eval_steps is None and config.dataset_split is None:
            logger.warning("EarlyStopping watches eval_loss, but the run is not asked to evaluate: set eval_steps")

    def on_log(self, ctx: TrainingLogContext) -> None:
        """Judge the numbers, until there is a reason to stop; then act on it."""
        if ctx.job.id != self._job_id:
            self._begin(ctx.job.id)
        self._checkpoints.log(ctx.step, ctx.loss, ctx.eval_loss)
        if self.stopped is None and (reason := self._stop_reason(ctx.loss, ctx.eval_loss)):
            self.stopped = f"step {ctx.step}: {reason}"
            logger.warning("early stopping at %s", self.stopped)
        if self.stopped is not None and not self._stop_requested:
            self._act(ctx)

    def on_checkpoint(self, ctx: CheckpointContext) -> None:
        """Take down how good it is."""
        if ctx.job.id != self._job_id:
            self._begin(ctx.job.id)
        self._checkpoints.checkpoint(ctx.step)

    def on_finished(self, ctx: FinishedContext) -> TrainingResult | None:
        """Name the best checkpoint in the result."""
        if ctx.result is None or ctx.job.id != self._job_id:
            return None
        present = {
            item.step for item in ctx.result.artifacts if isinstance(item, Artifact) and item.kind == "checkpoint"
        }
        among = [step for step in present if step is not None]
        best = self._checkpoints.best(self.on, among or None)
        return attrs.evolve(ctx.result, best=self._best_checkpoint(best) or ctx.result.best)

    def _begin(self, job_id: str | None) -> None:
        self._job_id, self.stopped, self._stop_requested = job_id, None, False
        self._trend = _LossTrend(self.ceiling, self.window, self.patience, self.min_delta)
        self._checkpoints = BestCheckpointTracker()

    def _stop_reason(self, loss: float | None, eval_loss: float | None) -> str | None:
        """Why to stop, in words."""
        if loss is not None and not math.isfinite(loss):
            return f"the loss is {loss}"
        value = loss if self.on == "loss" else eval_loss
        return None if value is None else self._trend.add(value, self.on)

    def _act(self, ctx: TrainingLogContext) -> None:
        if not self.cancel:
            ctx.stop_waiting(f"early stopping at {self.stopped}")
            self._stop_requested = True
            return
        try:
            ctx.cancel()  # False is as good: the run ended by itself in the same moment
        except (CloudApiError, BackendUnavailable) as error:
            self._stop_requested = not _is_transient(error)
            then = "" if self._stop_requested else ", which is tried again at its next log"
            logger.warning("the run could not be stopped%s: %s", then, error)
        else:
            self._stop_requested = True

    def _best_checkpoint(self, best: tuple[float, int] | None) -> BestCheckpoint | None:
        if best is None or self._job_id is None:
            return None
        value, step = best
        return BestCheckpoint(step, self.on, value, Adapter("checkpoint", self._job_id, step))


def _is_transient(error: CloudApiError | BackendUnavailable) -> bool:
    return isinstance(error, BackendUnavailable) or error.status in (408, 429) or error.status >= 500


class _LossTrend:
    """The mean of the last `window` values, and for how many of them it has not improved."""

    def __init__(self, ceiling: float | None, window: int, patience: int | None, min_delta: float) -> None:
        self._ceiling = ceiling
        self._patience = patience
        self._min_delta = min_delta
        self._recent: deque[float] = deque(maxlen=window)
        self._best = math.inf
        self._stalled = 0

    def add(self, value: float, name: str) -> str | None:
        """Why to stop at this value, or None."""
        if not math.isfinite(value):
            return f"the {name} is {value}"
        self._recent.append(value)
        if len(self._recent) < (self._recent.maxlen or 1):
            return None
        mean = sum(self._recent) / len(self._recent)
        what = f"the {name}" if len(self._recent) == 1 else f"the mean of the last {len(self._recent)} values of {name}"
        if self._ceiling is not None and mean > self._ceiling:
            return f"{what} is {mean:g}, above the ceiling of {self._ceiling:g}"
        return self._plateau_reason(mean, what)

    def _plateau_reason(self, mean: float, what: str) -> str | None:
        if mean < self._best - self._min_delta:
            self._best, self._stalled = mean, 0
            return None
        self._stalled += 1
        if self._patience is None or self._stalled < self._patience:
            return None
        return f"{what} has not improved on {self._best:g} for {self._stalled} values"
