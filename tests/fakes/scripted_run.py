"""The events of a whole run, as a backend would have logged them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone

from arkor.protocol.events import (
    CheckpointSaved,
    Event,
    TrainingCompleted,
    TrainingLog,
    TrainingStarted,
    encode_event,
    format_timestamp,
)
from tests.fakes.sse_server import frame

MIDNIGHT = datetime(2026, 1, 1, tzinfo=timezone.utc)


def at(seconds: float) -> str:
    return format_timestamp(MIDNIGHT + timedelta(seconds=seconds))


def scripted_run(
    steps: int, total: int | None = None, *, seconds_per_step: float = 2.0, save_every: int = 20
) -> Iterator[Event]:
    """The first `steps` of a run of `total`: losses that fall, an eval loss and a checkpoint now and then."""
    total = total or steps
    yield TrainingStarted("j", at(0), total)
    for step in range(1, steps + 1):
        loss = 0.05 + 2.2 * math.exp(-5 * step / total) * (1 + 0.15 * math.sin(step * 1.7))
        measured = loss * 1.1 + 0.05 if step % save_every == 0 else None
        now = at(step * seconds_per_step)
        yield TrainingLog("j", now, step, loss, measured, 2e-4 * (1 - step / total), step / total, 16.0)
        if measured:
            yield CheckpointSaved("j", now, step)
    if steps == total:
        yield TrainingCompleted("j", at(steps * seconds_per_step))


def frames(*events: Event) -> list[bytes]:
    data = [encode_event(event) for event in events]
    return [frame(number, event["type"], json.dumps(event)) for number, event in enumerate(data, start=1)]
