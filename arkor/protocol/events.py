"""The events of a run, and their JSON.

A number that is not finite must stay visible without the token `NaN` on the wire: the JSON carries
`"loss": null` and `"nonFinite": {"loss": "nan" | "inf" | "-inf"}`; a bare `NaN` is understood too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any

from attrs import frozen

from arkor.protocol.codec import NON_FINITE, to_wire
from arkor.protocol.estimates import Estimate, parse_estimate
from arkor.protocol.jobs import parse_artifacts


@frozen
class TrainingPreparing:
    """Before the first step: what the worker is busy with (`message`, for a person). A client may ignore it."""

    job_id: str
    timestamp: str
    message: str = ""


@frozen
class TrainingStarted:
    """The first step is about to be taken; `total_steps` is how many there will be, where the backend says so.

    `estimate` is what the run will take, where it was checked before.
    """

    job_id: str
    timestamp: str
    total_steps: int | None = None
    estimate: Estimate | None = None


@frozen
class TrainingResumed:
    """A worker died (`reason`, in words) and the run goes on from the checkpoint of `step`; 0 is from the start.

    The steps between that checkpoint and the last logged one are computed again and not logged again.
    """

    job_id: str
    timestamp: str
    step: int
    reason: str = ""


@frozen
class TrainingWarning:
    """The run goes on, but a person should know of `message`: that a full disk had no room for a checkpoint, say."""

    job_id: str
    timestamp: str
    message: str = ""


@frozen(slots=False)  # made twice as fast as one with slots, and of these there are many
class TrainingLog:
    """The numbers of one step; each is None on steps that lack it, and may be NaN or infinite."""

    job_id: str
    timestamp: str
    step: int
    loss: float | None = None
    eval_loss: float | None = None
    learning_rate: float | None = None
    epoch: float | None = None
    samples_per_second: float | None = None


@frozen
class CheckpointSaved:
    """The adapter as of `step` is complete on disk and can be talked to."""

    job_id: str
    timestamp: str
    step: int
    artifacts: tuple[Any, ...] | None = None


@frozen
class TrainingCompleted:
    job_id: str
    timestamp: str
    metrics: Mapping[str, Any] | None = None
    artifacts: tuple[Any, ...] = ()


@frozen
class TrainingFailedEvent:
    """The run ended with `error`, a sentence."""

    job_id: str
    timestamp: str
    error: str = "the backend gave no reason"
    step: int | None = None
    artifacts: tuple[Any, ...] = ()


@frozen
class TrainingCancelled:
    """The run was stopped on request. The wire has no type for it: it is a `training.failed` whose error says so."""

    job_id: str
    timestamp: str
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

TYPES: dict[str, type[Any]] = {
    "training.preparing": TrainingPreparing,
    "training.started": TrainingStarted,
    "training.resumed": TrainingResumed,
    "training.warning": TrainingWarning,
    "training.log": TrainingLog,
    "checkpoint.saved": CheckpointSaved,
    "training.completed": TrainingCompleted,
    "training.failed": TrainingFailedEvent,
}
TYPE_OF = {**{cls: name for name, cls in TYPES.items()}, TrainingCancelled: "training.failed"}
#: `training.cancelled` is written no more, and read where a log still has it.
TERMINAL_TYPES = frozenset({"training.completed", "training.failed", "training.cancelled"})

#: The `error` of a run that was stopped on request, as the protocol's other clients and backends know it.
CANCELLED_ERROR = "Job cancelled"

#: The fields of a log that are numbers: the step, and the metrics of that step.
METRIC_FIELDS = ("loss", "eval_loss", "learning_rate", "epoch", "samples_per_second")
LOG_FIELDS = ("step", *METRIC_FIELDS)


class MalformedEvent(ValueError):
    """A frame whose JSON is not the event that its type promises."""


def now() -> str:
    """The time stamp of an event that happens now."""
    return format_timestamp(datetime.now(timezone.utc))


def format_timestamp(moment: datetime) -> str:
    """A moment, of UTC, as events have it: ISO 8601, milliseconds."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def encode_event(event: Event) -> dict[str, Any]:
    """An event → its JSON object, `type` first; numbers that are not finite move into `nonFinite`."""
    data: dict[str, Any] = {"type": TYPE_OF[type(event)], **to_wire(event)}
    if isinstance(event, TrainingCancelled):
        data["error"] = CANCELLED_ERROR
    return data


def decode_event(data: Any) -> Event | None:
    """The JSON of a frame → the event, or None for a type that this version does not know.

    Raises `MalformedEvent` when it is no object, or lacks what its type demands.
    """
    if not isinstance(data, dict):
        raise MalformedEvent(f"expected an object, not {type(data).__name__}")
    kind = data.get("type")
    decode = _DECODERS.get(kind) if isinstance(kind, str) else None
    return decode(data) if decode else None


def _text(data: dict[str, Any], key: str, default: str = "") -> str:
    value = data.get(key)
    return value if isinstance(value, str) else default


def _step(data: dict[str, Any]) -> int:
    step = data.get("step")
    if type(step) is int and step >= 0:
        return step
    if type(step) is float and step.is_integer() and step >= 0:
        return int(step)
    raise MalformedEvent("it has no step")


def _optional_step(data: dict[str, Any]) -> int | None:
    return _step(data) if data.get("step") is not None else None


def _number(data: dict[str, Any], key: str) -> float | None:
    value = data.get(key)
    if type(value) is float:
        return value
    if type(value) is int:
        try:
            return float(value)
        except OverflowError:
            return float("inf") if value > 0 else float("-inf")
    if value is None and "nonFinite" in data:
        non_finite = data["nonFinite"]
        word = non_finite.get(key) if isinstance(non_finite, dict) else None
        return float(word) if word in NON_FINITE else None
    return None


def _decode_log(data: dict[str, Any]) -> TrainingLog:
    return TrainingLog(
        _text(data, "jobId"),
        _text(data, "timestamp"),
        _step(data),
        _number(data, "loss"),
        _number(data, "evalLoss"),
        _number(data, "learningRate"),
        _number(data, "epoch"),
        _number(data, "samplesPerSecond"),
    )


def _decode_checkpoint(data: dict[str, Any]) -> CheckpointSaved:
    artifacts = parse_artifacts(data["artifacts"]) if isinstance(data.get("artifacts"), list) else None
    return CheckpointSaved(_text(data, "jobId"), _text(data, "timestamp"), _step(data), artifacts)


def _decode_started(data: dict[str, Any]) -> TrainingStarted:
    total = data.get("totalSteps")
    total = total if type(total) is int else None
    return TrainingStarted(_text(data, "jobId"), _text(data, "timestamp"), total, parse_estimate(data.get("estimate")))


def _decode_resumed(data: dict[str, Any]) -> TrainingResumed:
    return TrainingResumed(_text(data, "jobId"), _text(data, "timestamp"), _step(data), _text(data, "reason"))


def _decode_warning(data: dict[str, Any]) -> TrainingWarning:
    return TrainingWarning(_text(data, "jobId"), _text(data, "timestamp"), _text(data, "message"))


def _decode_completed(data: dict[str, Any]) -> TrainingCompleted:
    metrics = data.get("metrics")
    return TrainingCompleted(
        _text(data, "jobId"),
        _text(data, "timestamp"),
        metrics if isinstance(metrics, dict) else None,
        parse_artifacts(data.get("artifacts")),
    )


def _decode_failed(data: dict[str, Any]) -> TrainingFailedEvent | TrainingCancelled:
    job, timestamp, step = _text(data, "jobId"), _text(data, "timestamp"), _optional_step(data)
    artifacts = parse_artifacts(data.get("artifacts"))
    error = _text(data, "error") or "the backend gave no reason"
    if error == CANCELLED_ERROR or data["type"] == "training.cancelled":
        return TrainingCancelled(job, timestamp, step, artifacts)
    return TrainingFailedEvent(job, timestamp, error, step, artifacts)


def _decode_preparing(data: dict[str, Any]) -> TrainingPreparing:
    return TrainingPreparing(_text(data, "jobId"), _text(data, "timestamp"), _text(data, "message"))


_DECODERS: dict[str, Callable[[dict[str, Any]], Event]] = {
    "training.preparing": _decode_preparing,
    "training.started": _decode_started,
    "training.resumed": _decode_resumed,
    "training.warning": _decode_warning,
    "training.log": _decode_log,
    "checkpoint.saved": _decode_checkpoint,
    "training.completed": _decode_completed,
    "training.failed": _decode_failed,
    "training.cancelled": _decode_failed,
}
