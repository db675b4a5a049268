"""A run's configuration, and how many rows there are → every number that training needs. No torch here.

`DEFAULTS` is what holds for a field that was left open.
"""

from __future__ import annotations

import importlib.util
import math
from typing import Any

from attrs import frozen

from arkor.errors import InvalidConfig
from arkor.protocol.jobs import JobConfig

#: What a field means that was left open; None is worked out from the run, as the comment says.
DEFAULTS: dict[str, Any] = {
    "num_train_epochs": 3.0,  # where max_steps is not set either; with both, whichever ends first
    "learning_rate": 5e-4,  # short runs of small models need more than the usual 2e-4, large ones bear it
    "batch_size": 8,
    "optim": "adamw_torch_fused",
    "lr_scheduler_type": "linear",
    "weight_decay": 0.0,  # an adapter is regularised by its rank
    "warmup_steps": 0.03,  # a share of the run
    "logging_steps": None,  # each step up to 1,000, then so that there are 1,000 logged ones
    "save_steps": None,  # five checkpoints a run
    "eval_steps": None,  # with rows to evaluate on: as often as checkpoints
    "lora_r": 16,
    "lora_alpha": 16.0,
    "max_length": 1024,  # or what the model takes, if that is less
    "load_in_4bit": False,
    "train_on_responses_only": None,  # true for chats, false for plain text
}

#: `eval_steps` without rows to evaluate on holds out this share, and never more rows than `EVAL_ROWS`.
EVAL_SHARE = 0.1
EVAL_ROWS = 200

DEFAULT_CHECKPOINTS = 5
MAX_LOGGED_STEPS = 1000

#: A dry run sees so many rows, of each kind, and takes so many steps.
DRY_RUN_ROWS = 50
DRY_RUN_EVAL_ROWS = 8
DRY_RUN_STEPS = 10

#: Optimizer → the package that it needs beside torch. Those that need settings of their own are left out.
OPTIMIZERS: dict[str, str | None] = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop")),
    **dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit"), "bitsandbytes"),
    **dict.fromkeys(("lion_8bit", "lion_32bit", "paged_lion_8bit", "paged_lion_32bit"), "bitsandbytes"),
    **dict.fromkeys(("ademamix", "ademamix_8bit", "rmsprop_bnb", "rmsprop_bnb_8bit"), "bitsandbytes"),
    **dict.fromkeys(("adamw_torch_4bit", "adamw_torch_8bit"), "torchao"),
}

#: Learning-rate schedule → the settings that it needs.
SCHEDULES: dict[str, dict[str, Any]] = {
    "linear": {},
    "cosine": {},
    "cosine_with_restarts": {},
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "polynomial": {},
    "constant": {},
    "constant_with_warmup": {},
    "inverse_sqrt": {},
    "warmup_stable_decay": {"num_decay_steps": 0.2},
}


@frozen
class Hyperparameters:
    """Every number of a run, none left open. `eval_steps` is None when nothing is evaluated."""

    total_steps: int
    batch_size: int
    learning_rate: float
    optim: str
    lr_scheduler_type: str
    weight_decay: float
    warmup_steps: int
    logging_steps: int
    save_steps: int
    eval_steps: int | None
    schedule_settings: dict[str, Any]


def setting_or_default(config: JobConfig, name: str) -> Any:
    """A field of the configuration, or its default."""
    value = getattr(config, name)
    return DEFAULTS[name] if value is None else value


def check_names(config: JobConfig) -> None:
    """Raise `InvalidConfig` for an optimizer or a schedule that does not exist here, with the list of those that do."""
    optim, schedule = setting_or_default(config, "optim"), setting_or_default(config, "lr_scheduler_type")
    if optim not in OPTIMIZERS:
        raise InvalidConfig("optim", f"there is no {optim!r}; choose one of {', '.join(OPTIMIZERS)}")
    package = OPTIMIZERS[optim]
    if package and importlib.util.find_spec(package) is None:
        raise InvalidConfig(
            "optim",
            f"{optim!r} needs the package {package}, which is not installed where the backend runs; "
            f"run pip install {package} there, or choose {DEFAULTS['optim']!r}",
        )
    if schedule not in SCHEDULES:
        raise InvalidConfig("lr_scheduler_type", f"there is no {schedule!r}; choose one of {', '.join(SCHEDULES)}")


def resolve_hyperparameters(config: JobConfig, rows: int, *, evaluates: bool) -> Hyperparameters:
    """The numbers of a run over `rows` rows; `evaluates` says whether there are rows to evaluate on."""
    batch = setting_or_default(config, "batch_size")
    total = _total_steps(config, math.ceil(rows / batch))
    schedule = setting_or_default(config, "lr_scheduler_type")
    save = config.save_steps or math.ceil(total / DEFAULT_CHECKPOINTS)
    evaluate = (config.eval_steps or save) if evaluates else None
    if config.dry_run:  # every stage is to be seen, however short the run
        save = min(save, math.ceil(total / 2))
        evaluate = min(evaluate, math.ceil(total / 2)) if evaluate else None
    return Hyperparameters(
        total_steps=total,
        batch_size=batch,
        learning_rate=setting_or_default(config, "learning_rate"),
        optim=setting_or_default(config, "optim"),
        lr_scheduler_type=schedule,
        weight_decay=setting_or_default(config, "weight_decay"),
        warmup_steps=_steps(setting_or_default(config, "warmup_steps"), total),
        logging_steps=config.logging_steps or math.ceil(total / MAX_LOGGED_STEPS),
        save_steps=save,
        eval_steps=evaluate,
        schedule_settings=_schedule_settings(schedule, total),
    )


def _total_steps(config: JobConfig, steps_per_epoch: int) -> int:
    limits = [config.max_steps] if config.max_steps else []
    if config.num_train_epochs or not config.max_steps:
        limits.append(max(1, math.ceil(setting_or_default(config, "num_train_epochs") * steps_per_epoch)))
    if config.dry_run:
        limits.append(DRY_RUN_STEPS)
    return min(limits)


def _steps(number: float, total: int) -> int:
    """Whole steps as they are; below 1, that share of the run."""
    return int(number) if number >= 1 else math.ceil(number * total)


def _schedule_settings(schedule: str, total: int) -> dict[str, Any]:
    settings = dict(SCHEDULES[schedule])
    if "num_decay_steps" in settings:
        settings["num_decay_steps"] = _steps(settings["num_decay_steps"], total)
    return settings
