"""A run on the wire: its configuration, its state, its artifacts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any

import attrs
from attrs import field, frozen

from arkor.errors import InvalidConfig
from arkor.formatting import format_repr
from arkor.protocol.codec import decode_objects, from_wire, optional, to_wire
from arkor.protocol.datasets import BlobDataset, HuggingFaceDataset, dataset_from_dict, parse_dataset
from arkor.protocol.step_counts import StepCount, StepCountValidator, as_object, simplified
from arkor.protocol.validation import (
    Choice,
    Integer,
    Number,
    Validator,
    boolean,
    dataset_format,
    dataset_split,
    names,
    text,
)


class JobStatus(str, Enum):
    """The state of a job; equal to its plain string."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    __str__ = str.__str__

    @property
    def terminal(self) -> bool:
        """True for completed, failed and cancelled."""
        return self in (JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED)


@frozen
class Scope:
    """The organisation and the project of a call, by slug."""

    org_slug: str
    project_slug: str


def _dataset_or_raw(value: Any) -> Any:
    """Decode a data set object; keep one of an unknown form for `check()` to reject."""
    if not isinstance(value, Mapping):
        return value
    try:
        return dataset_from_dict(value, tolerant=True)
    except InvalidConfig:
        return dict(value)


def _setting(validator: Validator, doc: str, converter: Callable[[Any], Any] | None = None) -> Any:
    """Declare a setting with its validator, which has the schema, and its documentation."""
    return field(default=None, converter=converter, metadata={"check": validator, "doc": doc})


def _steps_setting(minimum: int, doc: str) -> Any:
    return _setting(StepCountValidator(minimum), doc, simplified)


def _format(value: Any) -> Any:
    """Write `column_mapping`, the name of Python, as on the wire."""
    if isinstance(value, Mapping) and "column_mapping" in value and "columnMapping" not in value:
        return {"columnMapping" if key == "column_mapping" else key: item for key, item in value.items()}
    return value


def _enabled(value: Any) -> Any:
    """Return the flag of `{"enabled": …}`, the form of the managed cloud; keep anything else."""
    return value["enabled"] if isinstance(value, Mapping) and set(value) == {"enabled"} else value


@frozen
class JobConfig:
    """The configuration of a run; the backend chooses the value of a field that is None."""

    model: str = field(metadata={"schema": text.schema})
    dataset_source: Any = field(
        converter=_dataset_or_raw, metadata={"schema": {"anyOf": [HuggingFaceDataset, BlobDataset]}}
    )
    dataset_format: Mapping[str, Any] | None = _setting(dataset_format, "how a row is read", _format)
    max_steps: int | None = _setting(Integer(1), "optimizer steps")
    num_train_epochs: float | None = _setting(Number(above=0), "passes over the data")
    learning_rate: float | None = _setting(Number(above=0), "the highest step size")
    batch_size: int | None = _setting(Integer(1), "rows per step")
    optim: str | None = _setting(text, "the optimizer, by its name in transformers")
    lr_scheduler_type: str | None = _setting(text, "the learning rate over the run")
    weight_decay: float | None = _setting(Number(minimum=0), "pull of the weights towards zero")
    warmup_steps: StepCount | None = _steps_setting(
        0, "steps until the highest learning rate; below 1, a share of the run"
    )
    logging_steps: StepCount | None = _steps_setting(1, "steps between two logs")
    save_steps: StepCount | None = _steps_setting(1, "steps between two checkpoints")
    eval_steps: StepCount | None = _steps_setting(1, "steps between two evaluations")
    lora_r: int | None = _setting(Integer(1), "rank of the adapter")
    lora_alpha: float | None = _setting(Number(above=0), "scale of the adapter")
    max_length: int | None = _setting(Integer(8), "tokens per row; longer rows are cut")
    load_in_4bit: bool | None = _setting(boolean, "frozen weights in 4 bits (QLoRA, CUDA only)")
    lora_target_modules: Sequence[str] | None = _setting(names, "layers that the adapter adapts, by name")
    train_on_responses_only: bool | None = _setting(boolean, "learn the assistant's messages only", _enabled)
    dataset_split: Any = _setting(dataset_split, "which rows are trained on and held out")
    on_bad_rows: str | None = _setting(Choice(("refuse", "skip")), "refuse data with bad rows, or skip these")
    gpu_types: Sequence[str] | None = _setting(names, "the GPUs of the managed cloud that may be used")
    dry_run: bool | None = _setting(boolean, "a few rows and steps through every stage")
    extra: Mapping[str, Any] = field(factory=dict)

    @property
    def evaluates(self) -> bool:
        """True if the configuration asks for evaluations, False also if it disables them."""
        split = self.dataset_split
        if isinstance(split, Mapping) and split.keys() & {"eval", "enabled"}:
            return split.get("enabled") is not False
        return self.eval_steps is not None or isinstance(split, (int, float))

    def to_cloud_wire(self) -> dict[str, Any]:
        """Return the JSON of a checked configuration in the form of the managed cloud."""
        body: dict[str, Any] = to_wire(self)
        for name in ("warmupSteps", "loggingSteps", "saveSteps", "evalSteps"):
            if name in body:
                body[name] = as_object(body[name])
        if "trainOnResponsesOnly" in body:
            body["trainOnResponsesOnly"] = {"enabled": body["trainOnResponsesOnly"]}
        split = body.get("datasetSplit")
        share = split.get("eval") if isinstance(split, Mapping) and set(split) == {"eval"} else split
        if isinstance(share, (int, float)):
            body["datasetSplit"] = {"enabled": True, "testSize": share}
        return body

    def check(self) -> None:
        """Raise `InvalidConfig` for the first field of the wrong type or out of range."""
        text("model", self.model)
        parse_dataset(self.dataset_source, tolerant=True)
        for spec in attrs.fields(JobConfig):
            value = getattr(self, spec.name)
            if value is not None and "check" in spec.metadata:
                spec.metadata["check"](spec.name, value)


@frozen
class LoraConfig:
    """The adapter: rank `r`, scale `alpha`, `max_length` in tokens, `load_in_4bit` for QLoRA.

    `target_modules` are the names of the layers to adapt; by default all linear layers of the
    language model, without experts and routers.
    """

    r: int
    alpha: float
    max_length: int | None = None
    load_in_4bit: bool | None = None
    target_modules: Sequence[str] | None = None

    def __attrs_post_init__(self) -> None:
        specs = attrs.fields_dict(JobConfig)
        for name, setting in LORA_SETTINGS.items():
            value = getattr(self, name)
            if value is not None or name in ("r", "alpha"):
                specs[setting].metadata["check"](f"lora.{name}", value)

    def settings(self) -> dict[str, Any]:
        """Return the fields of a `JobConfig` for this adapter."""
        return {setting: getattr(self, name) for name, setting in LORA_SETTINGS.items()}


#: Field of `LoraConfig` → field of `JobConfig`.
LORA_SETTINGS = {
    "r": "lora_r",
    "alpha": "lora_alpha",
    "max_length": "max_length",
    "load_in_4bit": "load_in_4bit",
    "target_modules": "lora_target_modules",
}


@frozen
class Artifact:
    """A checkpoint or the final adapter of a run; `path` is relative to the run's folder."""

    kind: str | None = None
    step: int | None = None
    path: str | None = None
    bytes: int | None = None
    extra: Mapping[str, Any] = field(factory=dict)


def parse_artifacts(value: Any) -> tuple[Any, ...]:
    """Decode a list of artifacts; items that are not objects are kept."""
    return decode_objects(Artifact, value)


def _status(value: Any) -> Any:
    try:
        return JobStatus(value)
    except ValueError:
        return value


def _config(value: Any) -> Any:
    return from_wire(JobConfig, {"model": "", "datasetSource": None, **value}) if isinstance(value, Mapping) else value


def _objects(value: Any) -> tuple[Any, ...] | None:
    return tuple(value) if isinstance(value, (list, tuple)) else None


def _steps(value: Any) -> tuple[int, ...] | None:
    return tuple(value) if isinstance(value, (list, tuple)) and all(type(step) is int for step in value) else None


@frozen(repr=False)
class TrainingJob:
    """A submitted run. Times are ISO 8601 in UTC.

    `step` and `last_loss` (NaN if it diverged) are from the last log; `checkpoints` are the steps
    of the kept checkpoints; `events` are the JSON objects of its events so far. Each is None if the
    backend does not report it.
    """

    id: str
    org_id: str
    project_id: str
    name: str
    status: JobStatus = field(converter=_status)
    config: JobConfig = field(converter=_config)
    created_at: str
    error: str | None = None
    started_at: str | None = None
    completed_at: str | None = None
    step: int | None = optional(int)
    total_steps: int | None = optional(int)
    last_loss: float | None = optional(int, float)
    checkpoints: tuple[int, ...] | None = field(default=None, converter=_steps)
    events: tuple[Any, ...] | None = field(default=None, converter=_objects)
    extra: Mapping[str, Any] = field(factory=dict)

    def __repr__(self) -> str:
        model = getattr(self.config, "model", None)
        facts = {"id": self.id, "name": self.name, "status": str(self.status), "model": model, "error": self.error}
        return format_repr("TrainingJob", **facts)

    def _repr_html_(self) -> str:
        from arkor.results.html_cards import job_card  # noqa: PLC0415 - for notebooks only

        return job_card(self)
