"""Which model answers, parsed from every form and written back."""

from __future__ import annotations

from typing import Any

import pytest

from arkor.errors import InvalidConfig
from arkor.protocol.model_target import Adapter, ModelTarget, parse_step

BASE = {"kind": "base_model", "baseModel": "owner/name"}
FINAL = {"kind": "adapter", "adapter": {"kind": "final", "jobId": "j"}}
CHECKPOINT = {"kind": "adapter", "adapter": {"kind": "checkpoint", "jobId": "j", "step": 20}}


@pytest.mark.parametrize("target", [BASE, FINAL, CHECKPOINT])
def test_a_target_is_written_as_it_was_read(target: dict[str, Any]) -> None:
    assert ModelTarget.parse(target, reject_unknown=True).to_wire() == target


def test_a_run_has_a_final_adapter_and_checkpoints() -> None:
    assert ModelTarget.of_run("j").to_wire() == FINAL
    assert ModelTarget.of_run("j", 20).to_wire() == CHECKPOINT
    assert Adapter.of_run("j", 0) == Adapter("checkpoint", "j", 0)


@pytest.mark.parametrize(
    ("target", "field"),
    [
        ({**BASE, "adapter": {}}, "target.adapter"),
        ({**FINAL, "path": "/etc"}, "target.path"),
        ({"kind": "adapter", "adapter": {**FINAL["adapter"], "path": "/etc"}}, "target.adapter.path"),  # type: ignore[dict-item]
        ({"kind": "adapter", "adapter": {**FINAL["adapter"], "step": 3}}, "target.adapter.step"),  # type: ignore[dict-item]
    ],
)
def test_an_unknown_field_is_rejected(target: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        ModelTarget.parse(target, reject_unknown=True)
    assert caught.value.field == field


def test_an_unknown_kind_is_none_to_a_tolerant_reader() -> None:
    assert ModelTarget.parse_or_none({"kind": "router", "models": []}) is None
    assert ModelTarget.parse_or_none(BASE) == ModelTarget(base_model="owner/name")


@pytest.mark.parametrize("step", ["", "-1", "1.5", "²", "9" * 10])
def test_a_step_is_a_whole_number(step: str) -> None:
    assert parse_step("20") == 20
    with pytest.raises(InvalidConfig, match="step: must be the step of a checkpoint"):
        parse_step(step)
