"""Resolve a run's configuration to complete hyperparameters. Does not import torch."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from typing import Any

from attrs import fields, frozen

from arkor.errors import InvalidConfig
from arkor.protocol.jobs import JobConfig
from arkor.protocol.step_counts import steps_of

#: The default of each field of `JobConfig`; None is derived from the run as described.
DEFAULTS: dict[str, Any] = {
    "num_train_epochs": 3.0,  # unless max_steps is set; with both, the earlier end counts
    "learning_rate": 5e-4,  # short runs of small models need more than the usual 2e-4, large models tolerate it
    "batch_size": 8,
    "optim": "adamw_torch_fused",
    "lr_scheduler_type": "linear",
    "weight_decay": 0.0,  # an adapter is regularised by its rank
    "warmup_steps": 0.03,  # below 1: a share of the run, rounded down: the first step of a warm-up learns nothing
    "logging_steps": None,  # every step in runs of up to 1,000 steps, else 1,000 times a run
    "save_steps": None,  # five times a run
    "eval_steps": None,  # like save_steps, if there are evaluation rows
    "lora_r": 16,
    "lora_alpha": 16.0,
    "max_length": 1024,  # tokens; or the context length of the model if that is less
    "load_in_4bit": False,
    "lora_target_modules": None,  # all linear layers of the language model, without experts and routers
    "on_bad_rows": "refuse",  # a bad row is a mistake more often than not
    "train_on_responses_only": None,  # true for chats, false for plain text
}

#: The share of rows that is held out if `eval_steps` is set without evaluation rows, and its
#: maximum.
EVAL_SHARE = 0.1
EVAL_ROWS = 200

DEFAULT_CHECKPOINTS = 5
MAX_LOGGED_STEPS = 1000

#: Limits of a dry run: training rows, evaluation rows, steps.
DRY_RUN_ROWS = 50
DRY_RUN_EVAL_ROWS = 8
DRY_RUN_STEPS = 10

#: Optimizer → the package that it requires, besides torch. Optimizers with required settings are
#: left out.
OPTIMIZERS: dict[str, str | None] = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop")),
    **dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit"), "bitsandbytes"),
    **dict.fromkeys(("lion_8bit", "lion_32bit", "paged_lion_8bit", "paged_lion_32bit"), "bitsandbytes"),
    **dict.fromkeys(("ademamix", "ademamix_8bit", "rmsprop_bnb", "rmsprop_bnb_8bit"), "bitsandbytes"),
    **dict.fromkeys(("adamw_torch_4bit", "adamw_torch_8bit"), "torchao"),
}

#: Learning-rate schedule → its required settings.
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
    """The complete hyperparameters of a run, named like the fields of `JobConfig`.

    All `*_steps` are whole steps. `eval_steps`: None without evaluation rows.
    `schedule_settings` are additional arguments of the learning-rate schedule.
    """

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
    value = getattr(config, name)
    return DEFAULTS[name] if value is None else value


def check_names(config: JobConfig) -> None:
    """Raise `InvalidConfig` for an unknown optimizer or schedule, or a missing package."""
    optim, schedule = setting_or_default(config, "optim"), setting_or_default(config, "lr_scheduler_type")
    if optim not in OPTIMIZERS:
        raise InvalidConfig("optim", f"{optim!r} is unknown", f"choose one of {', '.join(OPTIMIZERS)}")
    package = OPTIMIZERS[optim]
    if package and importlib.util.find_spec(package) is None:
        raise InvalidConfig(
            "optim",
            f"{optim!r} requires the package {package}, which is not installed where the backend runs",
            f"run pip install {package} there, or choose {DEFAULTS['optim']!r}",
        )
    if schedule not in SCHEDULES:
        raise InvalidConfig("lr_scheduler_type", f"{schedule!r} is unknown", f"choose one of {', '.join(SCHEDULES)}")


def resolve_hyperparameters(config: JobConfig, rows: int, *, evaluates: bool) -> Hyperparameters:
    """Return the hyperparameters for `rows` training rows; `evaluates`: with evaluation."""
    values = {name: setting_or_default(config, name) for name in DEFAULTS}
    total = _total_steps(config, math.ceil(rows / values["batch_size"]))
    save = math.ceil(total / DEFAULT_CHECKPOINTS) if config.save_steps is None else steps_of(config.save_steps, total)
    evaluate = (save if config.eval_steps is None else steps_of(config.eval_steps, total)) if evaluates else None
    logging = config.logging_steps
    if config.dry_run:  # a dry run reaches every stage, however few its steps
        save = min(save, math.ceil(total / 2))
        evaluate = min(evaluate, math.ceil(total / 2)) if evaluate else None
    schedule_settings = dict(SCHEDULES[values["lr_scheduler_type"]])
    if "num_decay_steps" in schedule_settings:
        schedule_settings["num_decay_steps"] = steps_of(schedule_settings["num_decay_steps"], total)
    values |= {
        "total_steps": total,
        "warmup_steps": steps_of(values["warmup_steps"], total, math.floor),
        "logging_steps": math.ceil(total / MAX_LOGGED_STEPS) if logging is None else steps_of(logging, total),
        "save_steps": save,
        "eval_steps": evaluate,
        "schedule_settings": schedule_settings,
    }
    return Hyperparameters(**{field.name: values[field.name] for field in fields(Hyperparameters)})


def schedule_notes(hyperparameters: Hyperparameters) -> Iterator[str]:
    """Yield notes about a learning rate that does not come up to its highest value."""
    warmup, total = hyperparameters.warmup_steps, hyperparameters.total_steps
    if warmup >= total:
        steps = "1 step" if total == 1 else f"{total} steps"
        effect = "is 0, so that nothing is learnt" if total == 1 else "stays below learning_rate"
        yield f"warmup_steps is {warmup}, and the run has {steps}: its learning rate {effect}"


def _total_steps(config: JobConfig, steps_per_epoch: int) -> int:
    limits = [config.max_steps] if config.max_steps else []
    if config.num_train_epochs or not config.max_steps:
        limits.append(max(1, math.ceil(setting_or_default(config, "num_train_epochs") * steps_per_epoch)))
    if config.dry_run:
        limits.append(DRY_RUN_STEPS)
    return min(limits)
