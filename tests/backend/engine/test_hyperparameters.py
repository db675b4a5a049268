"""Each field of a `JobConfig` has the documented effect on the hyperparameters.

`tests/backend/training/test_trl_engine.py` tests the effect of the hyperparameters on training.
"""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from arkor.backend.engine.hyperparameters import (
    DEFAULTS,
    OPTIMIZERS,
    SCHEDULES,
    check_names,
    resolve_hyperparameters,
    schedule_notes,
)
from arkor.errors import InvalidConfig
from arkor.protocol.datasets import BlobDataset
from arkor.protocol.jobs import JobConfig

SOURCE = BlobDataset("/v1/datasets/x/a.jsonl")


def config(**fields: Any) -> JobConfig:
    made = JobConfig("some/model", SOURCE, **fields)
    made.check()
    return made


#: Fields, and the hyperparameters of a run over 100 rows with evaluation rows.
NUMBERS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"max_steps": 7}, {"total_steps": 7}),
    ({"num_train_epochs": 2.0}, {"total_steps": 26}),
    ({"num_train_epochs": 0.5}, {"total_steps": 7}),
    ({"num_train_epochs": 0.001}, {"total_steps": 1}),
    ({"max_steps": 7, "num_train_epochs": 2.0}, {"total_steps": 7}),
    ({"max_steps": 70, "num_train_epochs": 2.0}, {"total_steps": 26}),
    ({}, {"total_steps": 39}),
    ({"batch_size": 50}, {"batch_size": 50, "total_steps": 6}),
    ({"learning_rate": 0.5}, {"learning_rate": 0.5}),
    ({"optim": "sgd"}, {"optim": "sgd"}),
    ({"lr_scheduler_type": "cosine"}, {"lr_scheduler_type": "cosine", "schedule_settings": {}}),
    (
        {"lr_scheduler_type": "warmup_stable_decay", "max_steps": 50},
        {"schedule_settings": {"num_decay_steps": 10}},
    ),
    ({"weight_decay": 0.3}, {"weight_decay": 0.3}),
    ({"warmup_steps": 5}, {"warmup_steps": 5}),
    ({"warmup_steps": 0}, {"warmup_steps": 0}),
    ({"warmup_steps": 0.25, "max_steps": 8}, {"warmup_steps": 2}),
    ({"max_steps": 1}, {"warmup_steps": 0}),
    ({"max_steps": 33}, {"warmup_steps": 0}),
    ({"max_steps": 100, "num_train_epochs": 50.0}, {"warmup_steps": 3}),
    ({"logging_steps": 4}, {"logging_steps": 4}),
    ({"max_steps": 1000}, {"logging_steps": 1}),
    ({"max_steps": 5000}, {"logging_steps": 5}),
    ({"save_steps": 9}, {"save_steps": 9}),
    ({"max_steps": 60}, {"save_steps": 12}),
    ({"max_steps": 3}, {"save_steps": 1}),
    ({"eval_steps": 3}, {"eval_steps": 3}),
    ({"max_steps": 60}, {"eval_steps": 12}),
    ({"max_steps": 60, "eval_steps": 0.1}, {"eval_steps": 6}),
    ({"max_steps": 25, "eval_steps": {"ratio": 0.1}}, {"eval_steps": 3}),
    ({"max_steps": 60, "eval_steps": {"ratio": 1}}, {"eval_steps": 60}),
    ({"max_steps": 60, "save_steps": {"steps": 25}}, {"save_steps": 25}),
    ({"max_steps": 60, "logging_steps": 0.5}, {"logging_steps": 30}),
    ({"max_steps": 60, "warmup_steps": {"ratio": 0.5}}, {"warmup_steps": 30}),
    ({"max_steps": 60, "warmup_steps": {"ratio": 0}}, {"warmup_steps": 0}),
    ({"max_steps": 60, "warmup_steps": {"steps": 0}}, {"warmup_steps": 0}),
    ({"max_steps": 3, "eval_steps": 0.01}, {"eval_steps": 1}),
    ({"dry_run": True}, {"total_steps": 10, "save_steps": 2}),
    ({"dry_run": True, "max_steps": 4}, {"total_steps": 4, "save_steps": 1}),
    ({"dry_run": True, "save_steps": 500, "eval_steps": 500}, {"save_steps": 5, "eval_steps": 5}),
]


@pytest.mark.parametrize(("fields", "expected"), NUMBERS)
def test_fields_determine_hyperparameters(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    numbers = attrs.asdict(resolve_hyperparameters(config(**fields), 100, evaluates=True))
    assert {name: numbers[name] for name in expected} == expected


def test_a_warm_up_longer_than_the_run_is_noted() -> None:
    assert not list(schedule_notes(resolve_hyperparameters(config(max_steps=9), 100, evaluates=False)))
    [note] = schedule_notes(resolve_hyperparameters(config(max_steps=1, warmup_steps=5), 100, evaluates=False))
    assert note.startswith("warmup_steps is 5, and the run has 1 step: its learning rate is 0")


def test_eval_steps_are_none_without_evaluation_rows() -> None:
    assert resolve_hyperparameters(config(), 100, evaluates=False).eval_steps is None


def test_every_open_field_has_a_default_and_no_other() -> None:
    decided_elsewhere = {"model", "dataset_source", "dataset_format", "dataset_split", "dry_run", "max_steps", "extra"}
    decided_elsewhere.add("gpu_types")
    fields = {spec.name for spec in attrs.fields(JobConfig)}
    assert set(DEFAULTS) == fields - decided_elsewhere


def test_an_unknown_optimizer_lists_the_known_ones() -> None:
    with pytest.raises(InvalidConfig, match=r"optim: 'adam' is unknown; choose one of adamw_torch, .*sgd"):
        check_names(config(optim="adam"))


def test_an_unknown_schedule_lists_the_known_ones() -> None:
    with pytest.raises(InvalidConfig, match=r"lr_scheduler_type: 'cos' is unknown; choose one of linear, cosine"):
        check_names(config(lr_scheduler_type="cos"))


def test_a_missing_package_of_an_optimizer_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPTIMIZERS, "adamw_8bit", "no_such_package")
    with pytest.raises(InvalidConfig, match="pip install no_such_package there, or choose 'adamw_torch_fused'"):
        check_names(config(optim="adamw_8bit"))


def test_the_default_names_are_known() -> None:
    check_names(config())


@pytest.mark.slow
def test_transformers_supports_every_name() -> None:
    from transformers import SchedulerType  # noqa: PLC0415 - collecting tests loads no torch
    from transformers.training_args import OptimizerNames  # noqa: PLC0415 - as above

    assert set(OPTIMIZERS) <= {name.value for name in OptimizerNames}
    assert set(SCHEDULES) <= {name.value for name in SchedulerType}


@pytest.mark.slow
def test_every_hyperparameter_reaches_the_trainer() -> None:
    from trl import SFTConfig  # noqa: PLC0415 - as above

    from arkor.backend.compute.device import Device  # noqa: PLC0415 - as above
    from arkor.backend.training.trl_engine import recompute_argument, training_arguments  # noqa: PLC0415 - as above

    job_config = config(
        max_steps=77,
        batch_size=3,
        learning_rate=0.25,
        optim="adagrad",
        lr_scheduler_type="warmup_stable_decay",
        weight_decay=0.125,
        warmup_steps=11,
        logging_steps=13,
        save_steps=17,
        eval_steps=19,
    )
    numbers = resolve_hyperparameters(job_config, 100, evaluates=True)
    arguments = SFTConfig(
        output_dir="unused",
        **{recompute_argument(SFTConfig): False},
        **training_arguments(numbers, Device("cpu", "float32", "the CPU")),
    )
    assert arguments.max_steps == 77
    assert arguments.per_device_train_batch_size == 3
    assert arguments.learning_rate == 0.25
    assert arguments.optim == "adagrad"
    assert arguments.lr_scheduler_type == "warmup_stable_decay"
    assert arguments.lr_scheduler_kwargs == {"num_decay_steps": 16}
    assert arguments.weight_decay == 0.125
    assert arguments.get_warmup_steps(77) == 11
    assert (arguments.logging_steps, arguments.save_steps, arguments.eval_steps) == (13, 17, 19)
