"""What a script says of a run → the `JobConfig` that travels; of a keyword that is none, which one was meant.

What a value may be is said in `protocol/validation.py` and `protocol/jobs.py`; nothing here asks a backend.
"""

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
from arkor.protocol.datasets import DatasetSource, FileDataset, parse_dataset
from arkor.protocol.jobs import JobConfig, LoraConfig

Call = TypeVar("Call", bound=Callable[..., Any])

#: What other libraries call our keywords.
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
#: The fields of the adapter, under their own names and under those of other libraries.
_LORA_FIELDS = {
    **{name: name for name in attrs.fields_dict(LoraConfig)},
    "rank": "r",
    "lora_r": "r",
    "lora_rank": "r",
    "lora_alpha": "alpha",
    "max_seq_length": "max_length",
}


def build_config(
    model: Any,
    dataset: DatasetSource | Mapping[str, Any],
    lora: LoraConfig | Mapping[str, Any] | None,
    settings: Mapping[str, Any],
    base_folder: Path,
) -> JobConfig:
    """A checked configuration, with paths that are relative to the folder `base_folder`. Raises `InvalidConfig`."""
    settings = dict(settings)
    if isinstance(settings.get("dataset_format"), str):
        settings["dataset_format"] = {"type": settings["dataset_format"]}
    source = _absolute_if_file(parse_dataset(dataset), base_folder)
    config = JobConfig(_absolute_if_folder(model, base_folder), source, **settings, **_adapter(lora))
    config.check()
    return config


def did_you_mean(call: Call) -> Call:
    """`call`, which answers a keyword that it does not know with a `TypeError` that says which one was meant."""
    known = [name for name in inspect.signature(call).parameters if name not in ("self", "cls")]

    @functools.wraps(call)
    def wrapped(*values: Any, **keywords: Any) -> Any:
        for name in keywords:
            if name not in known:
                raise TypeError(
                    f"{call.__qualname__.removesuffix('.__init__')}() has no keyword {name!r}{_hint(name, known)}"
                )
        return call(*values, **keywords)

    return cast("Call", wrapped)


def _hint(name: str, known: list[str]) -> str:
    snake = "".join(f"_{char.lower()}" if char.isupper() else char for char in name)
    if "lora" in known and (field := _LORA_FIELDS.get(snake)):
        extra_hint = "" if field in ("r", "alpha") else f", {field}=…"
        return f"; it is a field of the adapter: lora=LoraConfig(r=…, alpha=…{extra_hint})"
    meant = [_SYNONYMS.get(snake), *difflib.get_close_matches(snake, known, n=1)]
    return next((f"; did you mean {known_name!r}?" for known_name in meant if known_name in known), "")


def _adapter(lora: LoraConfig | Mapping[str, Any] | None) -> dict[str, Any]:
    """`lora=` → the fields of the `JobConfig` that it stands for."""
    if lora is None:
        return {}
    if not isinstance(lora, LoraConfig):
        lora = _lora_from_dict(lora)
    return {
        "lora_r": lora.r,
        "lora_alpha": lora.alpha,
        "max_length": lora.max_length,
        "load_in_4bit": lora.load_in_4bit,
    }


def _lora_from_dict(lora: Mapping[str, Any]) -> LoraConfig:
    if not isinstance(lora, Mapping):
        raise InvalidConfig("lora", f"must be a LoraConfig or a dict, not {type(lora).__name__}")
    known = list(attrs.fields_dict(LoraConfig))
    for name in lora:
        if name not in known:
            raise InvalidConfig(f"lora.{name}", f"is no field of LoraConfig; it has {', '.join(known)}")
    for name in ("r", "alpha"):
        if name not in lora:
            raise InvalidConfig(f"lora.{name}", "is missing")
    return LoraConfig(**lora)


def _absolute_if_folder(model: Any, base_folder: Path) -> Any:
    """`./my-model` means a folder here; the backend, which runs elsewhere, gets its absolute path."""
    if isinstance(model, str) and model.startswith((".", "~", "/")):
        return os.path.realpath(absolute_path("model", model, base_folder))
    return model


def _absolute_if_file(source: DatasetSource, base_folder: Path) -> DatasetSource:
    """A file is where it was named, even if the script goes elsewhere before the run is submitted."""
    return (
        FileDataset(absolute_path("dataset.path", source.path, base_folder))
        if isinstance(source, FileDataset)
        else source
    )


def absolute_path(field: str, path: str, base_folder: Path) -> str:
    """A path as it is from everywhere, with `~` replaced. Raises `InvalidConfig` for what is none."""
    if "\0" in path:
        raise InvalidConfig(field, "holds a NUL character, which no path has")
    try:
        return str(base_folder / Path(path).expanduser())
    except RuntimeError:
        raise InvalidConfig(field, f"{path} begins with the home of a user who has none here") from None
