"""The nouns of a run: its configuration, its data source, the job, its artifacts, its result.

The classes are plain data and decode whatever a newer backend sends; `JobConfig.check()` is what says no.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from enum import Enum
from typing import Any

import attrs
from attrs import field, frozen

from arkor.errors import InvalidConfig, TrainingFailed
from arkor.formatting import quote
from arkor.protocol.best_checkpoint import BestCheckpoint
from arkor.protocol.codec import from_wire
from arkor.protocol.estimates import Outcome
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
from arkor.results.evaluation import Evaluation
from arkor.results.history import History
from arkor.results.html_cards import job_card, job_line, result_card, result_line


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


# Where the rows come from


_NOT_EMPTY = {"schema": {"type": "string", "minLength": 1}}


@frozen
class HuggingFaceDataset:
    """A data set of the Hugging Face hub; `split` and `subset` override its defaults."""

    name: str = field(metadata=_NOT_EMPTY)
    split: str | None = field(default=None, metadata=_NOT_EMPTY)
    subset: str | None = field(default=None, metadata=_NOT_EMPTY)
    extra: Mapping[str, Any] = field(factory=dict, repr=False)
    type: str = field(default="huggingface", init=False)


@frozen
class BlobDataset:
    """A file behind an HTTP(S) URL; `token` goes out as `Authorization: Bearer` and is never shown.

    A URL that begins with `/v1/datasets/` is a file that was uploaded to the backend itself.
    """

    url: str = field(metadata={"schema": {"type": "string", "pattern": "^(https?://|/v1/datasets/)"}})
    token: str | None = field(default=None, repr=False, metadata=_NOT_EMPTY)
    extra: Mapping[str, Any] = field(factory=dict, repr=False)
    type: str = field(default="blob", init=False)


def _path(value: str | os.PathLike[str]) -> str:
    """A path as text; what is none stays, for `parse_dataset` to refuse."""
    return os.fspath(value) if isinstance(value, os.PathLike) else value


@frozen
class FileDataset:
    """A file on this machine; it is uploaded to the backend when the run is submitted."""

    path: str = field(converter=_path)
    type: str = field(default="file", init=False)


DatasetSource = HuggingFaceDataset | BlobDataset | FileDataset

_SECRETS = re.compile("tok|secret|passw|auth|key|header|cookie|credential", re.IGNORECASE)
_SOURCES: dict[str, type[Any]] = {"huggingface": HuggingFaceDataset, "blob": BlobDataset, "file": FileDataset}


def parse_dataset(value: Any, *, tolerant: bool = False) -> DatasetSource:
    """A data set object or the seeds' dict → a checked `DatasetSource`; raises `InvalidConfig`.

    `tolerant`: a field that is not known here, of another version, is kept as `extra`.
    """
    if isinstance(value, Mapping):
        value = _dataset_from_dict(value, tolerant)
    if not isinstance(value, (HuggingFaceDataset, BlobDataset, FileDataset)):
        raise InvalidConfig("dataset", _dataset_hint(value))
    required = "path" if isinstance(value, FileDataset) else "url" if isinstance(value, BlobDataset) else "name"
    for name in _names(type(value)):
        item = getattr(value, name)
        if (item is None and name == required) or (item is not None and (not isinstance(item, str) or not item)):
            raise InvalidConfig(f"dataset.{name}", "must be a non-empty string")
    if isinstance(value, BlobDataset) and not value.url.startswith(("http://", "https://", "/v1/datasets/")):
        raise InvalidConfig("dataset.url", "must begin with http:// or https://; for a file on disk use FileDataset")
    return value


def _dataset_hint(value: Any) -> str:
    """What to write instead of a plain string, or of anything else."""
    if isinstance(value, (list, tuple)):
        return 'cannot be a list of rows; write them into a file, one JSON object a line: {"type": "file", "path": …}'
    value = _path(value)
    if not isinstance(value, str):
        return f'must be {{"type": "huggingface" | "blob" | "file", …}}, not {quote(value)}'
    if value.startswith(("http://", "https://")):
        return f'write {{"type": "blob", "url": {value!r}}}'
    return f'write {{"type": "file", "path": {value!r}}}, or {{"type": "huggingface", "name": …}} for one of the hub'


def _names(cls: Any) -> list[str]:
    return [f.name for f in attrs.fields(cls) if f.init and f.name != "extra"]


def _dataset_from_dict(value: Mapping[str, Any], tolerant: bool) -> Any:
    cls = _SOURCES.get(str(value.get("type")))
    if cls is None:
        raise InvalidConfig("dataset.type", f'must be "huggingface", "blob" or "file", not {quote(value.get("type"))}')
    rest = {key: item for key, item in value.items() if key != "type"}
    known = _names(cls)
    extra = {key: item for key, item in rest.items() if key not in known}
    for key in extra:
        if not tolerant or cls is FileDataset or _SECRETS.search(key):  # what is kept is shown
            problem = f"is no field of a {value['type']} data set; it has {', '.join(known)}"
            raise InvalidConfig(f"dataset.{key}", problem)
    if known[0] not in rest:
        raise InvalidConfig(f"dataset.{known[0]}", "is missing")
    named = {key: item for key, item in rest.items() if key in known}
    return cls(**named, **({"extra": extra} if extra else {}))


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


def _source(value: Any) -> Any:
    """Tolerant: what is no data set that we know stays as it came."""
    if not isinstance(value, Mapping):
        return value
    try:
        return _dataset_from_dict(value, tolerant=True)
    except InvalidConfig:
        return dict(value)


@frozen
class JobConfig:
    """What a run is asked to do; every field but the first two may stay None, "the backend decides"."""

    model: str = field(metadata={"schema": TEXT.schema})
    dataset_source: Any = field(converter=_source, metadata={"schema": {"anyOf": [HuggingFaceDataset, BlobDataset]}})
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
        return job_line(self)

    def _repr_html_(self) -> str:
        return job_card(self)


@frozen(repr=False)
class TrainingResult:
    """How a run ended: the job as the backend knows it and what the run left behind.

    `best` is what `EarlyStopping` found to be the best checkpoint, `evaluations` what `Evaluate` was answered,
    `history` every number that was logged while this process watched, `estimate` how good that of `check()` was.
    """

    job: TrainingJob
    artifacts: tuple[Any, ...] = ()
    best: BestCheckpoint | None = None
    evaluations: tuple[Evaluation, ...] = ()
    history: History = field(factory=History, eq=False)
    estimate: Outcome | None = None

    def __repr__(self) -> str:
        return result_line(self)

    def _repr_html_(self) -> str:
        return result_card(self)

    def raise_for_status(self) -> TrainingResult:
        """Itself when the run completed; raises `TrainingFailed` with the reason when it failed or was cancelled."""
        if self.job.status != JobStatus.COMPLETED:
            reason = f": {self.job.error}" if self.job.error else ""
            verb = "was cancelled" if self.job.status == JobStatus.CANCELLED else self.job.status
            raise TrainingFailed(f"the run {self.job.name!r} ({self.job.id}) {verb}{reason}")
        return self
