"""How the checkpoints of a run compare: the one rule by which both ends call one of them the best.

The rule needs the events of a run alone, so that whoever reads them comes to the same answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

from attrs import Factory, define, frozen

from arkor.protocol.chat import Adapter

Metric = Literal["loss", "eval_loss"]


@frozen
class BestCheckpoint:
    """The checkpoint of a run with the lowest `value` of `metric`; `adapter` names it for inference."""

    step: int
    metric: Metric
    value: float
    adapter: Adapter


@define
class BestCheckpointTracker:
    """What is known of a run's checkpoints, by step.

    A checkpoint's `eval_loss` is the one that was measured at its very step; its `loss` is the mean of the losses that
    were logged since the checkpoint before it. Values that are not finite do not count.
    """

    losses: dict[int, float] = Factory(dict)
    eval_losses: dict[int, float] = Factory(dict)
    _sum: float = 0.0
    _count: int = 0

    def log(self, step: int, loss: float | None, eval_loss: float | None) -> None:
        """Take in the numbers of one step."""
        if loss is not None:
            self._sum += loss
            self._count += 1
        if eval_loss is not None:
            self.eval_losses[step] = eval_loss

    def checkpoint(self, step: int) -> None:
        """Take in that a checkpoint was saved."""
        self.losses[step] = self._sum / self._count if self._count else math.nan
        self._sum, self._count = 0.0, 0

    def best(self, metric: Metric, candidates: Iterable[int] | None = None) -> tuple[float, int] | None:
        """The lowest value of the checkpoints (or of those at the steps `candidates`), and its step; the earliest of
        equals.

        None when no value is known.
        """
        values = self.losses if metric == "loss" else self.eval_losses
        steps = self.losses.keys() if candidates is None else self.losses.keys() & set(candidates)
        measured = [(values[step], step) for step in steps if math.isfinite(values.get(step, math.nan))]
        return min(measured, default=None)
