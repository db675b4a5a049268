"""The arguments of `Trainer(…)` → a `JobConfig`, and suggestions for unknown keywords."""

from __future__ import annotations

import difflib
import functools
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import attrs

from arkor.errors import InvalidConfig
from arkor.formatting import quote
from arkor.protocol.codec import camel_case, dumps
from arkor.protocol.datasets import DatasetSource, FileDataset, parse_dataset
from arkor.protocol.jobs import LORA_SETTINGS, JobConfig, LoraConfig

Call = TypeVar("Call", bound=Callable[..., Any])

#: Names of our keywords in other libraries.
_SYNONYMS = {
    "base_model": "model",
    "model_name": "model",
    "train_dataset": "dataset",
    "training_file": "dataset",
    "lr": "learning_rate",
    "epochs": "num_train_epochs",
    "num_epochs": "num_train_epochs",
    "n_epochs": "num_train_epochs",
    "per_device_train_batch_size": "batch_size",
    "lr_scheduler": "lr_scheduler_type",
    "optimizer": "optim",
    "warmup_ratio": "warmup_steps",
    "signal": "abort_signal",
}
#: The fields of `LoraConfig`, under their own names and the names in other libraries.
_LORA_FIELDS = {
    **{name: name for name in attrs.fields_dict(LoraConfig)},
    "rank": "r",
    "lora_r": "r",
    "lora_rank": "r",
    "lora_alpha": "alpha",
    "lora_target_modules": "target_modules",
    "max_seq_length": "max_length",
}


def build_config(
    model: Any,
    dataset: DatasetSource | Mapping[str, Any],
    lora: LoraConfig | Mapping[str, Any] | None,
    base_folder: Path,
    **settings: Any,
) -> JobConfig:
    """Return a configuration, checked, with paths relative to `base_folder` made absolute."""
    if isinstance(settings.get("dataset_format"), str):
        settings["dataset_format"] = {"type": settings["dataset_format"]}
    source = parse_dataset(dataset)
    if isinstance(source, FileDataset):  # the script may change its folder
        source = FileDataset(absolute_path("dataset.path", source.path, base_folder))
    if isinstance(model, str) and model.startswith((".", "~", "/")):  # a folder
        model = os.path.realpath(absolute_path("model", model, base_folder))
    settings["extra"] = _checked_extra(settings.get("extra"))
    if lora is not None:
        settings |= (lora if isinstance(lora, LoraConfig) else _lora_from_dict(lora)).settings()
    config = JobConfig(model, source, **settings)
    config.check()
    return config


def _checked_extra(extra: Any) -> dict[str, Any]:
    """Return fields of the wire that have no keyword; raise `InvalidConfig` for one that has."""
    if extra is None:
        return {}
    if not isinstance(extra, Mapping) or not all(isinstance(name, str) and name for name in extra):
        raise InvalidConfig("extra", f"must be a dict of fields by their JSON names, not {quote(extra)}")
    known = [field.name for field in attrs.fields(JobConfig) if field.name != "extra"]
    keywords = {name: {"dataset_source": "dataset"}.get(name, name) for name in known}
    keywords |= {setting: f"lora.{name}" for name, setting in LORA_SETTINGS.items()}
    for name in known:
        for spelling in (name, camel_case(name)):
            if spelling in extra:
                raise InvalidConfig(f"extra.{spelling}", "is known to this version", f"write it as {keywords[name]}")
    try:
        dumps(extra)
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidConfig("extra", f"cannot be written as JSON: {error}") from None
    return dict(extra)


def did_you_mean(call: Call) -> Call:
    """Make `call` raise a `TypeError` with a suggestion for an unknown keyword."""
    known = [name for name in inspect.signature(call).parameters if name not in ("self", "cls")]

    @functools.wraps(call)
    def wrapped(*values: Any, **keywords: Any) -> Any:
        for name in keywords:
            if name not in known:
                function = call.__qualname__.removesuffix(".__init__")
                raise TypeError(f"{function}() has no keyword {name!r}{_hint(name, known)}")
        return call(*values, **keywords)

    return cast("Call", wrapped)


def _hint(name: str, known: list[str]) -> str:
    snake = "".join(f"_{char.lower()}" if char.isupper() else char for char in name)
    if "lora" in known and (field := _LORA_FIELDS.get(snake)):
        example = "" if field in ("r", "alpha") else f", {field}=…"
        return f"; it is a field of the adapter: lora=LoraConfig(r=…, alpha=…{example})"
    candidates = [_SYNONYMS.get(snake), *difflib.get_close_matches(snake, known, n=1)]
    return next((f"; did you mean {candidate!r}?" for candidate in candidates if candidate in known), "")


def _lora_from_dict(lora: Mapping[str, Any]) -> LoraConfig:
    if not isinstance(lora, Mapping):
        raise InvalidConfig("lora", f"must be a LoraConfig or a dict, not {type(lora).__name__}")
    known = list(attrs.fields_dict(LoraConfig))
    for name in lora:
        if name not in known:
            raise InvalidConfig(f"lora.{name}", f"is not a field of LoraConfig; the fields are {', '.join(known)}")
    for name in ("r", "alpha"):
        if name not in lora:
            raise InvalidConfig(f"lora.{name}", "is missing")
    return LoraConfig(**lora)


def absolute_path(field: str, path: str, base_folder: Path) -> str:
    """Expand `~` and make a path absolute. Raise `InvalidConfig` for an invalid path."""
    if "\0" in path:
        raise InvalidConfig(field, "contains a NUL character, which a path cannot contain")
    try:
        return str(base_folder / Path(path).expanduser())
    except RuntimeError:
        raise InvalidConfig(field, f"{path} begins with a home folder that does not exist on this machine") from None
