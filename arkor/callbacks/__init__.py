"""What reacts to a run: the callbacks, the context that each of them gets, and callbacks that are ready to use.

Callbacks run inside `wait()`, on the caller's thread, one at a time, in the order of the events.
"""

from arkor.callbacks.contexts import (
    CheckpointContext,
    CompletedContext,
    FailedContext,
    FinishedContext,
    Infer,
    StartedContext,
    TrainingLogContext,
)
from arkor.callbacks.early_stopping import EarlyStopping
from arkor.callbacks.evaluate import Evaluate
from arkor.callbacks.listeners import MOMENTS, Listeners, TrainerCallbacks
from arkor.callbacks.notify import Notify
from arkor.callbacks.report import Report
from arkor.evaluations import Answer, Evaluation
from arkor.standings import BestCheckpoint

__all__ = [
    "MOMENTS",
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
    "Listeners",
    "Notify",
    "Report",
    "StartedContext",
    "TrainerCallbacks",
    "TrainingLogContext",
]
