"""`Report`: write the metrics of a run to a file or to an experiment tracker."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from arkor.callbacks.contexts import FinishedContext, StartedContext, TrainingLogContext
from arkor.callbacks.report.files import CsvMetrics, JsonLinesMetrics
from arkor.callbacks.report.trackers import MLflow, TensorBoard, Tracker, Trackio, WeightsAndBiases
from arkor.errors import InvalidConfig
from arkor.protocol.events import METRIC_FIELDS
from arkor.protocol.jobs import TrainingJob

logger = logging.getLogger("arkor")

_TRACKERS: dict[str, Callable[..., Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
    "trackio": Trackio,
}
_FILES: dict[str, Callable[[Path], Tracker]] = {".csv": CsvMetrics, ".jsonl": JsonLinesMetrics}


class Report:
    """Write each logged metric `to` a file (`*.csv`, `*.jsonl`) or a tracker, given by its name.

    Options: `folder` for `"tensorboard"`; `experiment` and `tracking_uri` for `"mlflow"`; the
    arguments of their `init` for `"wandb"` and `"trackio"`. The tracker's library must be
    installed; it is imported when a run begins. If a tracker fails, this is logged once and the run
    is watched without it. Raise `InvalidConfig` for an invalid argument.
    """

    def __init__(self, to: str | Path, **options: Any) -> None:
        self.to = str(to)
        self._tracker = _tracker(to, options)
        self._job_id: str | None = None
        self._usable = False

    def __repr__(self) -> str:
        return f"Report({self.to!r})"

    def on_started(self, ctx: StartedContext) -> None:
        """Open the report, and replace earlier entries of this run."""
        self._open(ctx.job, restart=True)

    def on_log(self, ctx: TrainingLogContext) -> None:
        if ctx.job.id != self._job_id:
            self._open(ctx.job, restart=False)
        metrics = {name: getattr(ctx, name) for name in METRIC_FIELDS}
        logged = {name: number for name, number in metrics.items() if number is not None}
        if self._usable and logged:
            self._attempt(lambda: self._tracker.log(ctx.step, logged))

    def on_finished(self, ctx: FinishedContext) -> None:
        """Close the report; a further `wait()` opens it again."""
        self._close(str(ctx.result.job.status) if ctx.result is not None else None)

    def _open(self, job: TrainingJob, restart: bool) -> None:
        self._close(None)
        self._job_id, self._usable = job.id, True
        self._attempt(lambda: self._tracker.open(job, restart))

    def _close(self, status: str | None) -> None:
        if self._usable:
            self._attempt(lambda: self._tracker.close(status))
        self._job_id, self._usable = None, False

    def _attempt(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 - no library may end the wait
            self._usable = False
            logger.warning("%r failed and is disabled for this run: %s: %s", self, type(error).__name__, error)


def _tracker(to: str | Path, options: dict[str, Any]) -> Tracker:
    if isinstance(to, str) and to in _TRACKERS:
        try:
            return _TRACKERS[to](**options)
        except TypeError as error:
            raise InvalidConfig("Report", f"invalid options for {to}: {error}") from None
    file = _FILES.get(Path(to).suffix.lower()) if isinstance(to, (str, Path)) else None
    if file is None:
        names = ", ".join(map(repr, _TRACKERS))
        raise InvalidConfig("Report.to", f"must be one of {names}, or a file that ends in .csv or .jsonl, not {to!r}")
    if options:
        raise InvalidConfig("Report", f"a file takes no options, but {', '.join(options)} was given")
    return file(Path(to))
