"""Each setting is declared once; a job keeps what a backend reports about it."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import attrs
import pytest

from arkor.errors import InvalidConfig
from arkor.protocol.codec import dumps, from_wire, to_wire
from arkor.protocol.jobs import LORA_SETTINGS, JobConfig, LoraConfig, TrainingJob

JOB = {"id": "j", "orgId": "o", "projectId": "p", "name": "n", "status": "running", "config": {}, "createdAt": "t"}
SETTINGS = {spec.name: spec.metadata for spec in attrs.fields(JobConfig) if "check" in spec.metadata}


def test_a_setting_has_a_validator_and_a_description() -> None:
    others = {"model", "dataset_source", "extra"}
    assert SETTINGS.keys() | others == attrs.fields_dict(JobConfig).keys()
    assert all(metadata["doc"] and metadata["check"].schema for metadata in SETTINGS.values())


def test_the_documentation_has_the_type_of_each_setting() -> None:
    page = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", page, re.M))
    for spec in attrs.fields(JobConfig):
        kind = str(spec.type).removesuffix(" | None")
        if kind in ("int", "float", "str", "bool"):
            assert f"`{kind}`" in rows[spec.name], spec.name


@pytest.mark.parametrize(
    ("fields", "evaluates"),
    [
        ({}, False),
        ({"dataset_split": "train[:200]"}, False),
        ({"dataset_split": {"train": "train[:200]"}}, False),
        ({"dataset_split": {"enabled": False}, "eval_steps": 5}, False),
        ({"eval_steps": {"ratio": 1}}, True),
        ({"dataset_split": "train[:200]", "eval_steps": 0.1}, True),
        ({"dataset_split": 0.1}, True),
        ({"dataset_split": {"eval": "test"}}, True),
        ({"dataset_split": {"enabled": True}}, True),
    ],
)
def test_whether_a_configuration_asks_for_evaluations(fields: dict[str, Any], evaluates: bool) -> None:
    config = JobConfig("m", {"type": "huggingface", "name": "a/b"}, **fields)
    config.check()
    assert config.evaluates is evaluates


def test_the_adapter_has_the_rules_of_its_settings() -> None:
    assert LORA_SETTINGS.keys() == attrs.fields_dict(LoraConfig).keys()
    assert LoraConfig(16, 32.0, max_length=64).settings() == {
        "lora_r": 16,
        "lora_alpha": 32.0,
        "max_length": 64,
        "load_in_4bit": None,
        "lora_target_modules": None,
    }


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("lora.r", {"r": 0, "alpha": 1}),
        ("lora.r", {"r": None, "alpha": 1}),
        ("lora.alpha", {"r": 1, "alpha": 0}),
        ("lora.max_length", {"r": 1, "alpha": 1, "max_length": 7}),
        ("lora.load_in_4bit", {"r": 1, "alpha": 1, "load_in_4bit": 1}),
        ("lora.target_modules", {"r": 1, "alpha": 1, "target_modules": "q_proj"}),
        ("lora.target_modules", {"r": 1, "alpha": 1, "target_modules": []}),
        ("lora.target_modules[1]", {"r": 1, "alpha": 1, "target_modules": ["q_proj", ""]}),
    ],
)
def test_a_wrong_value_of_the_adapter_is_named(field: str, values: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfig) as caught:
        LoraConfig(**values)
    assert caught.value.field == field


def test_a_job_has_the_progress_that_the_backend_reports() -> None:
    progress = {"step": 5, "totalSteps": 9, "lastLoss": None, "nonFinite": {"lastLoss": "nan"}, "checkpoints": [2, 4]}
    job: TrainingJob = from_wire(TrainingJob, {**JOB, **progress, "gpu": "new"})
    assert (job.step, job.total_steps, job.checkpoints, job.extra) == (5, 9, (2, 4), {"gpu": "new"})
    assert job.last_loss is not None
    assert math.isnan(job.last_loss)
    assert to_wire(job).items() >= progress.items()
    assert '"lastLoss":null' in dumps(to_wire(job))


def test_progress_of_an_unknown_form_is_none() -> None:
    odd = {"step": "5", "totalSteps": [], "lastLoss": {}, "nonFinite": "x", "checkpoints": ["a"]}
    job: TrainingJob = from_wire(TrainingJob, {**JOB, **odd})
    assert (job.step, job.total_steps, job.last_loss, job.checkpoints) == (None, None, None, None)
