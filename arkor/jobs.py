"""The nouns of a run: its configuration, its data source, the job, its artifacts, its result.

The classes are plain data and decode whatever a newer backend sends; `JobConfig.check()` is what says no.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Protocol

import attrs
from attrs import field, frozen

from arkor.cards import job_card, job_line, result_card, result_line
from arkor.errors import InvalidConfig, TrainingFailed
from arkor.evaluations import Evaluation
from arkor.history import History
from arkor.standings import BestCheckpoint
from arkor.wire import from_wire


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
    type: str = field(default="huggingface", init=False)


@frozen
class BlobDataset:
    """A file behind an HTTP(S) URL; `token` goes out as `Authorization: Bearer` and is never shown.

    A URL that begins with `/v1/datasets/` is a file that was uploaded to the backend itself.
    """

    url: str = field(metadata={"schema": {"type": "string", "pattern": "^(https?://|/v1/datasets/)"}})
    token: str | None = field(default=None, repr=False, metadata=_NOT_EMPTY)
    type: str = field(default="blob", init=False)


@frozen
class FileDataset:
    """A file on this machine; it is uploaded to the backend when the run is submitted."""

    path: str = field(converter=str)
    type: str = field(default="file", init=False)


DatasetSource = HuggingFaceDataset | BlobDataset | FileDataset

_SOURCES: dict[str, type[Any]] = {"huggingface": HuggingFaceDataset, "blob": BlobDataset, "file": FileDataset}


def parse_dataset(value: Any) -> DatasetSource:
    """A data set object or the seeds' dict → a checked `DatasetSource`; raises `InvalidConfig`."""
    if isinstance(value, Mapping):
        value = _dataset_from_dict(value)
    if not isinstance(value, (HuggingFaceDataset, BlobDataset, FileDataset)):
        raise InvalidConfig("dataset", _instead_of(value))
    required = "path" if isinstance(value, FileDataset) else "url" if isinstance(value, BlobDataset) else "name"
    for name in attrs.fields_dict(type(value)):
        item = getattr(value, name)
        if (item is None and name == required) or (item is not None and (not isinstance(item, str) or not item)):
            raise InvalidConfig(f"dataset.{name}", "must be a non-empty string")
    if isinstance(value, BlobDataset) and not value.url.startswith(("http://", "https://", "/v1/datasets/")):
        raise InvalidConfig("dataset.url", "must begin with http:// or https://; for a file on disk use FileDataset")
    return value


def _instead_of(value: Any) -> str:
    """What to write instead of a plain string, or of anything else."""
    if not isinstance(value, str):
        return f'must be {{"type": "huggingface" | "blob" | "file", …}}, not {_shown(value)}'
    if value.startswith(("http://", "https://")):
        return f'write {{"type": "blob", "url": {value!r}}}'
    return f'write {{"type": "file", "path": {value!r}}}, or {{"type": "huggingface", "name": …}} for one of the hub'


def _dataset_from_dict(value: Mapping[str, Any]) -> Any:
    cls = _SOURCES.get(str(value.get("type")))
    if cls is None:
        raise InvalidConfig("dataset.type", f'must be "huggingface", "blob" or "file", not {_shown(value.get("type"))}')
    rest = {key: item for key, item in value.items() if key != "type"}
    known = [f.name for f in attrs.fields(cls) if f.init]
    for key in rest:
        if key not in known:
            problem = f"is no field of a {value['type']} data set; it has {', '.join(known)}"
            raise InvalidConfig(f"dataset.{key}", problem)
    if known[0] not in rest:
        raise InvalidConfig(f"dataset.{known[0]}", "is missing")
    return cls(**rest)


# What to train


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


class Check(Protocol):
    """Raises `InvalidConfig` for a value that is no good; `schema` is the same as JSON Schema, as far as that goes."""

    @property
    def schema(self) -> Mapping[str, Any]: ...

    def __call__(self, name: str, value: Any) -> None: ...


@frozen
class _Integer:
    minimum: int

    @property
    def schema(self) -> Mapping[str, Any]:
        return {"type": "integer", "minimum": self.minimum, "maximum": 2**31 - 1}

    def __call__(self, name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not self.minimum <= value < 2**31:
            raise InvalidConfig(name, f"must be a whole number of at least {self.minimum}, not {_shown(value)}")


@frozen
class _Number:
    above: float | None = None
    minimum: float | None = None

    @property
    def schema(self) -> Mapping[str, Any]:
        bound = {"minimum": self.minimum} if self.above is None else {"exclusiveMinimum": self.above}
        return {"type": "number", **bound}

    def __call__(self, name: str, value: Any) -> None:
        bound = f"above {self.above:g}" if self.above is not None else f"of at least {self.minimum:g}"
        if not _is_finite(value) or not self._within(value):
            raise InvalidConfig(name, f"must be a number {bound}, not {_shown(value)}")

    def _within(self, value: float) -> bool:
        return (self.above is None or value > self.above) and (self.minimum is None or value >= self.minimum)


def _is_finite(value: Any) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        return False


@frozen
class _Rule:
    """A check that has its schema beside it."""

    check: Callable[[str, Any], None]
    schema: Mapping[str, Any]

    def __call__(self, name: str, value: Any) -> None:
        self.check(name, value)


def _boolean(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise InvalidConfig(name, f"must be True or False, not {_shown(value)}")


def _text(name: str, value: Any) -> None:
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise InvalidConfig(name, f"must be a non-empty string, not {_shown(value)}")


_BOOLEAN = _Rule(_boolean, {"type": "boolean"})
_TEXT = _Rule(_text, {"type": "string", "pattern": r"^[^\u0000]*[^\s\u0000][^\u0000]*$"})


def _warmup(name: str, value: Any) -> None:
    """Whole steps, or below 1 the share of the run, as in transformers."""
    _Number(minimum=0)(name, value)
    if isinstance(value, float) and value >= 1 and not value.is_integer():
        raise InvalidConfig(name, f"must be whole steps, or a share of the run below 1, not {_shown(value)}")


FORMATS = ("chatml", "sharegpt", "alpaca", "prompt_completion", "text")


def _format(name: str, value: Any) -> None:
    if isinstance(value, str) and value in FORMATS:
        raise InvalidConfig(name, f'must be an object; write {{"type": "{value}"}}')
    if not isinstance(value, Mapping) or value.get("type") not in FORMATS:
        kind = value["type"] if isinstance(value, Mapping) and "type" in value else value
        raise InvalidConfig(name, f"must be one of {', '.join(map(repr, FORMATS))}, not {_shown(kind)}")
    if unknown := next((key for key in value if key != "type"), None):
        raise InvalidConfig(f"{name}.{unknown}", f'is no field of a format; write {{"type": "{value["type"]}"}} alone')


def _split(name: str, value: Any) -> None:
    """`"train[:200]"`, `0.1` (the share held out), or `{"train": "train", "eval": "test" | 0.1}`."""
    if isinstance(value, Mapping):
        if not value or set(value) - {"train", "eval"}:
            raise InvalidConfig(name, f'takes the keys "train" and "eval", not {_shown(dict(value))}')
        if "train" in value:
            _text(f"{name}.train", value["train"])
        if "eval" in value and not isinstance(value["eval"], str):
            _share(f"{name}.eval", value["eval"])
    elif isinstance(value, str):
        _text(name, value)
    else:
        _share(name, value)


def _share(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        problem = f"must name a split, or be the share to hold out (between 0 and 1), not {_shown(value)}"
        raise InvalidConfig(name, problem)


_FORMAT = _Rule(
    _format,
    {"type": "object", "properties": {"type": {"enum": FORMATS}}, "required": ["type"], "additionalProperties": False},
)
_A_SHARE = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}
_SPLIT = _Rule(
    _split,
    {
        "anyOf": [
            _TEXT.schema,
            _A_SHARE,
            {
                "type": "object",
                "properties": {"train": _TEXT.schema, "eval": {"anyOf": [{"type": "string"}, _A_SHARE]}},
                "minProperties": 1,
                "additionalProperties": False,
            },
        ]
    },
)
_WARMUP = _Rule(_warmup, {"anyOf": [{"type": "integer", "minimum": 0}, _A_SHARE]})


def _setting(check: Check) -> Any:
    return field(default=None, metadata={"check": check})


@frozen
class LoraConfig:
    """The adapter: rank `r`, scale `alpha`, `max_length` in tokens, `load_in_4bit` for QLoRA (CUDA only)."""

    r: int
    alpha: float
    max_length: int | None = None
    load_in_4bit: bool | None = None

    def __attrs_post_init__(self) -> None:
        for name, check in (("r", _Integer(1)), ("alpha", _Number(above=0))):
            check(f"lora.{name}", getattr(self, name))
        if self.max_length is not None:
            _Integer(8)("lora.max_length", self.max_length)
        if self.load_in_4bit is not None:
            _boolean("lora.load_in_4bit", self.load_in_4bit)


def _source(value: Any) -> Any:
    """Tolerant: what is no data set that we know stays as it came."""
    if not isinstance(value, Mapping):
        return value
    cls = _SOURCES.get(str(value.get("type")))
    try:
        return cls(**{key: item for key, item in value.items() if key != "type"}) if cls else dict(value)
    except TypeError:
        return dict(value)


@frozen
class JobConfig:
    """What a run is asked to do; every field but the first two may stay None, "the backend decides"."""

    model: str = field(metadata={"schema": _TEXT.schema})
    dataset_source: Any = field(converter=_source, metadata={"schema": {"anyOf": [HuggingFaceDataset, BlobDataset]}})
    dataset_format: Mapping[str, Any] | None = _setting(_FORMAT)
    max_steps: int | None = _setting(_Integer(1))
    num_train_epochs: float | None = _setting(_Number(above=0))
    learning_rate: float | None = _setting(_Number(above=0))
    batch_size: int | None = _setting(_Integer(1))
    optim: str | None = _setting(_TEXT)
    lr_scheduler_type: str | None = _setting(_TEXT)
    weight_decay: float | None = _setting(_Number(minimum=0))
    warmup_steps: float | None = _setting(_WARMUP)
    logging_steps: int | None = _setting(_Integer(1))
    save_steps: int | None = _setting(_Integer(1))
    eval_steps: int | None = _setting(_Integer(1))
    lora_r: int | None = _setting(_Integer(1))
    lora_alpha: float | None = _setting(_Number(above=0))
    max_length: int | None = _setting(_Integer(8))
    load_in_4bit: bool | None = _setting(_BOOLEAN)
    train_on_responses_only: bool | None = _setting(_BOOLEAN)
    dataset_split: Any = _setting(_SPLIT)
    dry_run: bool | None = _setting(_BOOLEAN)
    extra: Mapping[str, Any] = field(factory=dict)

    def check(self) -> None:
        """Raise `InvalidConfig` for the first field whose value is of the wrong type or out of range."""
        _text("model", self.model)
        parse_dataset(self.dataset_source)
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


@frozen(repr=False)
class TrainingJob:
    """A submitted run. Times are ISO 8601 in UTC."""

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
    extra: Mapping[str, Any] = field(factory=dict)

    def __repr__(self) -> str:
        return job_line(self)

    def _repr_html_(self) -> str:
        return job_card(self)


@frozen(repr=False)
class TrainingResult:
    """How a run ended: the job as the backend knows it and what the run left behind.

    `best` is what `EarlyStopping` found to be the best checkpoint, `evaluations` what `Evaluate` was answered,
    `history` every number that was logged while this process watched.
    """

    job: TrainingJob
    artifacts: tuple[Any, ...] = ()
    best: BestCheckpoint | None = None
    evaluations: tuple[Evaluation, ...] = ()
    history: History = field(factory=History, eq=False)

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
