"""The events of a run, and their JSON.

JSON has no NaN and no infinity: a log with such a number has `"loss": null` and
`"nonFinite": {"loss": "nan" | "inf" | "-inf"}`. A bare `NaN` is decoded, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any

import attrs
from attrs import frozen

from arkor.protocol.codec import NON_FINITE, camel_case, to_wire
from arkor.protocol.estimates import Estimate, parse_estimate
from arkor.protocol.jobs import parse_artifacts

#: The `error` of a cancelled run, which all clients and backends of the protocol share.
CANCELLED_ERROR = "Job cancelled"

#: The numbers of a log besides its step.
METRIC_FIELDS = ("loss", "eval_loss", "learning_rate", "epoch", "samples_per_second")
LOG_FIELDS = ("step", *METRIC_FIELDS)


#: Metrics of a completed run: our name, and that of the managed cloud.
METRIC_SYNONYMS = (("loss", "finalLoss"), ("steps", "totalSteps"), ("seconds", "totalTime"))


class MalformedEvent(ValueError):
    """The JSON of a frame does not have the form of its event type."""


@frozen(slots=False)
class _Event:
    """The fields of all events; `timestamp` is ISO 8601 in UTC."""

    job_id: str
    timestamp: str


@frozen
class TrainingPreparing(_Event):
    """A stage before the first step, described by `message`. Clients may ignore it."""

    message: str = ""


@frozen
class TrainingStarted(_Event):
    """The first of `total_steps` steps follows; `estimate` is from an earlier check."""

    total_steps: int | None = None
    estimate: Estimate | None = None


@frozen
class TrainingResumed(_Event):
    """A worker died (`reason`), and the run resumes from the checkpoint at `step`; 0 is the start.

    Steps between that checkpoint and the last log are computed again, but not logged again.
    """

    step: int
    reason: str = ""


@frozen
class TrainingWarning(_Event):
    """A `message` for the user, for example that a checkpoint could not be saved."""

    message: str = ""


@frozen(slots=False)  # created twice as fast as with slots, which matters for logs
class TrainingLog(_Event):
    """The numbers of one step; None where they were not logged, and possibly NaN or infinite."""

    step: int
    loss: float | None = None
    eval_loss: float | None = None
    learning_rate: float | None = None
    epoch: float | None = None
    samples_per_second: float | None = None


@frozen
class CheckpointSaved(_Event):
    """The adapter of `step` is complete on disk and can be used for inference."""

    step: int
    artifacts: tuple[Any, ...] | None = None


@frozen
class TrainingCompleted(_Event):
    metrics: Mapping[str, Any] | None = None
    artifacts: tuple[Any, ...] = ()


@frozen
class TrainingFailedEvent(_Event):
    """The run ended with `error`, a sentence."""

    error: str = "the backend gave no reason"
    step: int | None = None
    artifacts: tuple[Any, ...] = ()


@frozen
class TrainingCancelled(_Event):
    """The run was cancelled; on the wire a `training.failed` with `CANCELLED_ERROR`."""

    step: int | None = None
    artifacts: tuple[Any, ...] = ()


Event = (
    TrainingPreparing
    | TrainingStarted
    | TrainingResumed
    | TrainingWarning
    | TrainingLog
    | CheckpointSaved
    | TrainingCompleted
    | TrainingFailedEvent
    | TrainingCancelled
)

TYPES: Mapping[str, type[Any]] = {
    "training.preparing": TrainingPreparing,
    "training.started": TrainingStarted,
    "training.resumed": TrainingResumed,
    "training.warning": TrainingWarning,
    "training.log": TrainingLog,
    "checkpoint.saved": CheckpointSaved,
    "training.completed": TrainingCompleted,
    "training.cancelled": TrainingCancelled,  # in logs of old versions only
    "training.failed": TrainingFailedEvent,
}
TYPE_OF = {**{cls: name for name, cls in TYPES.items()}, TrainingCancelled: "training.failed"}
TERMINAL_TYPES = frozenset({"training.completed", "training.failed", "training.cancelled"})


def with_synonyms(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics of a completed run under our names and those of the managed cloud."""
    found = dict(metrics)
    for pair in METRIC_SYNONYMS:
        for name, other in (pair, pair[::-1]):
            if name in metrics:
                found.setdefault(other, metrics[name])
    return found


def now() -> str:
    """Return the current time as the timestamp of an event."""
    return format_timestamp(datetime.now(timezone.utc))


def format_timestamp(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def encode_event(event: Event) -> dict[str, Any]:
    """Return the JSON object of an event, with `type` as its first key."""
    data: dict[str, Any] = {"type": TYPE_OF[type(event)], **to_wire(event)}
    if isinstance(event, TrainingCancelled):
        data["error"] = CANCELLED_ERROR
    return data


def decode_event(data: Any) -> Event | None:
    """Decode a frame's JSON object; None for an unknown type. Raise `MalformedEvent`."""
    if not isinstance(data, dict):
        raise MalformedEvent(f"expected an object, not {type(data).__name__}")
    kind = data.get("type")
    if kind == "training.log":
        return _decode_log(data)
    if kind == "training.failed" and data.get("error") == CANCELLED_ERROR:
        kind = "training.cancelled"
    cls = TYPES.get(kind) if isinstance(kind, str) else None
    if cls is None:
        return None
    values = {f.name: _READERS[f.name](data.get(camel_case(f.name))) for f in attrs.fields(cls)}
    if values.get("step", 0) is None and attrs.fields(cls).step.default is attrs.NOTHING:
        raise MalformedEvent("it has no step")
    event: Event = cls(**{name: value for name, value in values.items() if value is not None})
    return event


def _decode_log(data: dict[str, Any]) -> TrainingLog:
    step = _step(data.get("step"))
    if step is None:
        raise MalformedEvent("it has no step")
    return TrainingLog(
        _text(data.get("jobId")),
        _text(data.get("timestamp")),
        step,
        _number(data, "loss"),
        _number(data, "evalLoss"),
        _number(data, "learningRate"),
        _number(data, "epoch"),
        _number(data, "samplesPerSecond"),
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _step(value: Any) -> int | None:
    if value is None or (type(value) is int and value >= 0):
        return value
    if type(value) is float and value.is_integer() and value >= 0:
        return int(value)
    raise MalformedEvent("it has no step")


def _number(data: dict[str, Any], key: str) -> float | None:
    value = data.get(key)
    if type(value) is float:
        return value
    if type(value) is int:
        try:
            return float(value)
        except OverflowError:
            return float("inf") if value > 0 else float("-inf")
    if value is None and isinstance(words := data.get("nonFinite"), dict) and words.get(key) in NON_FINITE:
        return float(words[key])
    return None


#: Field of an event → how its JSON is read; None stands for the default.
_READERS: Mapping[str, Callable[[Any], Any]] = {
    "job_id": _text,
    "timestamp": _text,
    "step": _step,
    "message": _text,
    "reason": _text,
    "error": lambda value: _text(value) or None,
    "total_steps": lambda value: value if type(value) is int else None,
    "estimate": parse_estimate,
    "metrics": lambda value: with_synonyms(value) if isinstance(value, dict) else None,
    "artifacts": lambda value: parse_artifacts(value) if isinstance(value, list) else None,
}
