"""`Report`: the numbers of a run, as they come, in a file or in a tracker."""

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
    """Every logged number goes `to` a file (`*.csv`, `*.jsonl`), or to a tracker by its name.

    Options: `"tensorboard"` takes `folder`; `"mlflow"` `experiment` and `tracking_uri`; `"wandb"` and `"trackio"` what
    their own `init` takes. A tracker's library has to be installed, and is imported when a run begins. When a tracker
    fails, that is logged once, and the run is watched without it. Raises `InvalidConfig`.
    """

    def __init__(self, to: str | Path, **options: Any) -> None:
        self.to = str(to)
        self._tracker = _tracker(to, options)
        self._job_id: str | None = None
        self._usable = False

    def __repr__(self) -> str:
        return f"Report({self.to!r})"

    def on_started(self, ctx: StartedContext) -> None:
        """Begin the report of this run."""
        self._close(None)
        self._open(ctx.job, anew=True)

    def on_log(self, ctx: TrainingLogContext) -> None:
        """Hand on the numbers that this log has."""
        if ctx.job.id != self._job_id:
            self._close(None)
            self._open(ctx.job, anew=False)
        given = {name: getattr(ctx, name) for name in METRIC_FIELDS}
        numbers = {name: number for name, number in given.items() if number is not None}
        if self._usable and numbers:
            self._attempt(lambda: self._tracker.log(ctx.step, numbers))

    def on_finished(self, ctx: FinishedContext) -> None:
        """Close it; a further `wait()` opens it again."""
        self._close(str(ctx.result.job.status) if ctx.result is not None else None)

    def _open(self, job: TrainingJob, anew: bool) -> None:
        self._job_id, self._usable = job.id, True
        self._attempt(lambda: self._tracker.open(job, anew))

    def _close(self, status: str | None) -> None:
        if self._usable:
            self._attempt(lambda: self._tracker.close(status))
        self._job_id, self._usable = None, False

    def _attempt(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 - a library may raise anything; it is no reason to stop watching
            self._usable = False
            logger.warning("%r failed and is left out from here on: %s: %s", self, type(error).__name__, error)


def _tracker(to: str | Path, options: dict[str, Any]) -> Tracker:
    if isinstance(to, str) and to in _TRACKERS:
        try:
            return _TRACKERS[to](**options)
        except TypeError as error:
            raise InvalidConfig("Report", f"{to} does not take that: {error}") from None
    file = _FILES.get(Path(to).suffix.lower()) if isinstance(to, (str, Path)) else None
    if file is None:
        names = ", ".join(map(repr, _TRACKERS))
        raise InvalidConfig("Report.to", f"must be one of {names}, or a file that ends in .csv or .jsonl, not {to!r}")
    if options:
        raise InvalidConfig("Report", f"a file takes no options; {', '.join(options)} is one")
    return file(Path(to))
