"""The rule by which client and backend find the best checkpoint from the events of a run."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

from attrs import Factory, define, frozen

from arkor.protocol.model_target import Adapter

Metric = Literal["loss", "eval_loss"]


@frozen
class BestCheckpoint:
    """The checkpoint with the lowest `value` of `metric`, and its adapter for inference."""

    step: int
    metric: Metric
    value: float
    adapter: Adapter


@define
class BestCheckpointTracker:
    """The losses of a run's checkpoints, by step.

    The `eval_loss` of a checkpoint was measured at its step; its `loss` is the mean of the losses
    logged since the checkpoint before it. Values that are not finite do not count.
    """

    losses: dict[int, float] = Factory(dict)
    eval_losses: dict[int, float] = Factory(dict)
    _sum: float = 0.0
    _count: int = 0

    def log(self, step: int, loss: float | None, eval_loss: float | None) -> None:
        if loss is not None:
            self._sum += loss
            self._count += 1
        if eval_loss is not None:
            self.eval_losses[step] = eval_loss

    def checkpoint(self, step: int) -> None:
        self.losses[step] = self._sum / self._count if self._count else math.nan
        self._sum, self._count = 0.0, 0

    def best(self, metric: Metric, candidates: Iterable[int] | None = None) -> tuple[float, int] | None:
        """Return the lowest value of the `candidates` (default: all) and its earliest step."""
        values = self.losses if metric == "loss" else self.eval_losses
        steps = self.losses.keys() if candidates is None else self.losses.keys() & set(candidates)
        measured = [(values[step], step) for step in steps if math.isfinite(values.get(step, math.nan))]
        return min(measured, default=None)
