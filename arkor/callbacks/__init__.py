"""Callbacks: functions that react to the events of a run, their contexts, and ready-made callbacks.

Callbacks run inside `wait()`, on the caller's thread, one at a time, in the order of the events.
The ready-made ones are imported on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

from arkor.callbacks.contexts import (
    CheckpointContext,
    CompletedContext,
    FailedContext,
    FinishedContext,
    Infer,
    StartedContext,
    TrainingLogContext,
)
from arkor.callbacks.registry import TrainerCallbacks
from arkor.protocol.best_checkpoint import BestCheckpoint
from arkor.results.evaluation import Answer, Evaluation

if TYPE_CHECKING:
    from arkor.callbacks.early_stopping import EarlyStopping
    from arkor.callbacks.evaluate.evaluate import Evaluate
    from arkor.callbacks.notify.notify import Notify
    from arkor.callbacks.report.report import Report
else:
    _LAZY_MODULES = {
        "EarlyStopping": "early_stopping",
        "Evaluate": "evaluate.evaluate",
        "Notify": "notify.notify",
        "Report": "report.report",
    }

    def __getattr__(name: str) -> Any:
        if name not in _LAZY_MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_LAZY_MODULES[name]}"), name)


__all__ = [
    "Answer",
    "BestCheckpoint",
    "CheckpointContext",
    "CompletedContext",
    "EarlyStopping",
    "Evaluate",
    "Evaluation",
    "FailedContext",
    "FinishedContext",
    "Infer",
    "Notify",
    "Report",
    "StartedContext",
    "TrainerCallbacks",
    "TrainingLogContext",
]
