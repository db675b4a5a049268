"""What `wait()` returns: the job, its artifacts, and what callbacks measured."""

from __future__ import annotations

from typing import Any

from attrs import field, frozen

from arkor.errors import TrainingFailed
from arkor.formatting import format_repr
from arkor.protocol.best_checkpoint import BestCheckpoint
from arkor.protocol.estimates import Outcome
from arkor.protocol.jobs import JobStatus, TrainingJob
from arkor.results.evaluation import Evaluation
from arkor.results.history import History
from arkor.results.html_cards import result_card


@frozen(repr=False)
class TrainingResult:
    """The final state of a run and its artifacts.

    `best` is set by `EarlyStopping`, `evaluations` by `Evaluate`. `history` has the logs that this
    process received, `estimate` compares the estimate of an earlier `check()` with the run.
    """

    job: TrainingJob
    artifacts: tuple[Any, ...] = ()
    best: BestCheckpoint | None = None
    evaluations: tuple[Evaluation, ...] = ()
    history: History = field(factory=History, eq=False)
    estimate: Outcome | None = None

    def __repr__(self) -> str:
        return format_repr(
            "TrainingResult",
            id=self.job.id,
            name=self.job.name,
            status=str(self.job.status),
            error=self.job.error,
            artifacts=len(self.artifacts),
            best=getattr(self.best, "step", None),
            evaluations=len(self.evaluations) or None,
            history=self.history,
        )

    def _repr_html_(self) -> str:
        return result_card(self)

    def raise_for_status(self) -> TrainingResult:
        """Return itself if the run completed; raise `TrainingFailed` with the reason if not."""
        if self.job.status != JobStatus.COMPLETED:
            reason = f": {self.job.error}" if self.job.error else ""
            verb = "was cancelled" if self.job.status == JobStatus.CANCELLED else self.job.status
            raise TrainingFailed(f"the run {self.job.name!r} ({self.job.id}) {verb}{reason}")
        return self
