"""Events of backends that name fields differently."""

from __future__ import annotations

from typing import Any

import pytest

from arkor.protocol.events import TrainingCompleted, decode_event

OURS = {"loss": 0.5, "steps": 20, "seconds": 3.25}
THEIRS = {"finalLoss": 0.5, "totalSteps": 20, "totalTime": 3.25}


@pytest.mark.parametrize("metrics", [OURS, THEIRS, {**THEIRS, **OURS}])
def test_the_metrics_have_both_names(metrics: dict[str, Any]) -> None:
    event = decode_event({"type": "training.completed", "jobId": "j", "timestamp": "t", "metrics": metrics})
    assert isinstance(event, TrainingCompleted)
    assert event.metrics == {**OURS, **THEIRS}


def test_metrics_that_are_not_known_stay() -> None:
    event = decode_event({"type": "training.completed", "jobId": "j", "timestamp": "t", "metrics": {"gpu": "l4"}})
    assert isinstance(event, TrainingCompleted)
    assert event.metrics == {"gpu": "l4"}
