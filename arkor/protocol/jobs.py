"""The nouns of a run: its configuration, its data source, the job, its artifacts, its result.

The classes are plain data and decode whatever a newer backend sends; `JobConfig.check()` is what says no.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

import attrs
from attrs import field, frozen

from arkor.errors import InvalidConfig
from arkor.formatting import format_repr
from arkor.protocol.codec import from_wire
from arkor.protocol.datasets import BlobDataset, HuggingFaceDataset, dataset_from_dict, parse_dataset
from arkor.protocol.validation import (
    BOOLEAN,
    FORMAT,
    SPLIT,
    TEXT,
    WARMUP,
    Integer,
    Number,
    Validator,
    boolean,
    text,
)


class JobStatus(str, Enum):
    """Where a job stands; compares equal to its plain string."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    __str__ = str.__str__

    @property
    def terminal(self) -> bool:
        """Whether a run that has it has ended."""
        return self in (JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED)


@frozen
class Scope:
    """Whose call it is: the organisation and the project, by slug."""

    org_slug: str
    project_slug: str


# What to train


def _setting(validator: Validator) -> Any:
    return field(default=None, metadata={"check": validator})


@frozen
class LoraConfig:
    """The adapter: rank `r`, scale `alpha`, `max_length` in tokens, `load_in_4bit` for QLoRA (CUDA only)."""

    r: int
    alpha: float
    max_length: int | None = None
    load_in_4bit: bool | None = None

    def __attrs_post_init__(self) -> None:
        for name, check in (("r", Integer(1)), ("alpha", Number(above=0))):
            check(f"lora.{name}", getattr(self, name))
        if self.max_length is not None:
            Integer(8)("lora.max_length", self.max_length)
        if self.load_in_4bit is not None:
            boolean("lora.load_in_4bit", self.load_in_4bit)


def _dataset_or_raw(value: Any) -> Any:
    """Decode a data set object; keep what is not of a known form for `check()` to reject."""
    if not isinstance(value, Mapping):
        return value
    try:
        return dataset_from_dict(value, tolerant=True)
    except InvalidConfig:
        return dict(value)


@frozen
class JobConfig:
    """What a run is asked to do; every field but the first two may stay None, "the backend decides"."""

    model: str = field(metadata={"schema": TEXT.schema})
    dataset_source: Any = field(
        converter=_dataset_or_raw, metadata={"schema": {"anyOf": [HuggingFaceDataset, BlobDataset]}}
    )
    dataset_format: Mapping[str, Any] | None = _setting(FORMAT)
    max_steps: int | None = _setting(Integer(1))
    num_train_epochs: float | None = _setting(Number(above=0))
    learning_rate: float | None = _setting(Number(above=0))
    batch_size: int | None = _setting(Integer(1))
    optim: str | None = _setting(TEXT)
    lr_scheduler_type: str | None = _setting(TEXT)
    weight_decay: float | None = _setting(Number(minimum=0))
    warmup_steps: float | None = _setting(WARMUP)
    logging_steps: int | None = _setting(Integer(1))
    save_steps: int | None = _setting(Integer(1))
    eval_steps: int | None = _setting(Integer(1))
    lora_r: int | None = _setting(Integer(1))
    lora_alpha: float | None = _setting(Number(above=0))
    max_length: int | None = _setting(Integer(8))
    load_in_4bit: bool | None = _setting(BOOLEAN)
    train_on_responses_only: bool | None = _setting(BOOLEAN)
    dataset_split: Any = _setting(SPLIT)
    dry_run: bool | None = _setting(BOOLEAN)
    extra: Mapping[str, Any] = field(factory=dict)

    def check(self) -> None:
        """Raise `InvalidConfig` for the first field whose value is of the wrong type or out of range."""
        text("model", self.model)
        parse_dataset(self.dataset_source, tolerant=True)
        for spec in attrs.fields(type(self)):
            value = getattr(self, spec.name)
            if value is not None and "check" in spec.metadata:
                spec.metadata["check"](spec.name, value)


# What came of it


@frozen
class Artifact:
    """A thing that a run left behind: `kind` is `"checkpoint"` or `"final"`, `path` is below the run's folder."""

    kind: str | None = None
    step: int | None = None
    path: str | None = None
    bytes: int | None = None
    extra: Mapping[str, Any] = field(factory=dict)


def parse_artifacts(value: Any) -> tuple[Any, ...]:
    """Objects become `Artifact`s; whatever else a backend lists is handed on as it came."""
    items = value if isinstance(value, (list, tuple)) else ()
    return tuple(from_wire(Artifact, item) if isinstance(item, Mapping) else item for item in items)


def _status(value: Any) -> Any:
    try:
        return JobStatus(value)
    except ValueError:
        return value


def _config(value: Any) -> Any:
    return from_wire(JobConfig, {"model": "", "datasetSource": None, **value}) if isinstance(value, Mapping) else value


def _int_or_none(value: Any) -> int | None:
    return value if type(value) is int else None


def _float_or_none(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) else None


def _steps(value: Any) -> tuple[int, ...] | None:
    return tuple(value) if isinstance(value, (list, tuple)) and all(type(step) is int for step in value) else None


@frozen(repr=False)
class TrainingJob:
    """A submitted run. Times are ISO 8601 in UTC.

    `step` and `last_loss` (NaN if it diverged) are of the last logged step, `checkpoints` the steps of those that the
    backend keeps; each is None where the backend does not report it.
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
    step: int | None = field(default=None, converter=_int_or_none)
    total_steps: int | None = field(default=None, converter=_int_or_none)
    last_loss: float | None = field(default=None, converter=_float_or_none)
    checkpoints: tuple[int, ...] | None = field(default=None, converter=_steps)
    extra: Mapping[str, Any] = field(factory=dict)

    def __repr__(self) -> str:
        model = getattr(self.config, "model", None)
        facts = {"id": self.id, "name": self.name, "status": str(self.status), "model": model, "error": self.error}
        return format_repr("TrainingJob", **facts)

    def _repr_html_(self) -> str:
        from arkor.results.html_cards import job_card  # noqa: PLC0415 - for notebooks only

        return job_card(self)
