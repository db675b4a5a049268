"""What the commands print: tables, colours where they are wanted, times and events for a person."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

import click

from arkor.formatting import format_duration, format_loss, one_line, parse_timestamp
from arkor.protocol.codec import to_wire
from arkor.protocol.events import (
    CheckpointSaved,
    Event,
    TrainingCancelled,
    TrainingCompleted,
    TrainingFailedEvent,
    TrainingLog,
    TrainingPreparing,
    TrainingResumed,
    TrainingStarted,
    TrainingWarning,
)
from arkor.protocol.jobs import TrainingJob

_COLOURS = {"queued": "yellow", "running": "cyan", "completed": "green", "failed": "red", "cancelled": "magenta"}


def say(text: str = "", *, err: bool = False, nl: bool = True) -> None:
    """Print; without colours where there is no terminal, or one without any, or `NO_COLOR` is set."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    click.echo(text, err=err, nl=nl, color=False if plain else None)


as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of lines.")


def say_json(data: Any) -> None:
    """Print one JSON document, for programs; escaped where what we print to is no UTF-8."""
    is_utf8 = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "") == "utf8"
    say(json.dumps(to_wire(data), indent=2, ensure_ascii=not is_utf8))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need to be; the last one is not padded."""
    every = [[one_line(text) for text in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in every) for column in range(len(head))]
    return "\n".join(
        "  ".join(_cell(text, width) for text, width in zip(row, widths, strict=True)).rstrip() for row in every
    )


def _cell(text: str, width: int) -> str:
    padded = text.ljust(width)
    return click.style(padded, fg=_COLOURS[text]) if text in _COLOURS else padded


def format_time(timestamp: str | None) -> str:
    """`"2026-03-01 14:05"`, local time."""
    moment = parse_timestamp(timestamp)
    return moment.strftime("%Y-%m-%d %H:%M") if moment else "-"


def format_elapsed(job: TrainingJob) -> str:
    """How long the run took, or has been taking: `"1:42"`."""
    began, ended = parse_timestamp(job.started_at), parse_timestamp(job.completed_at)
    if began is None:
        return "-"
    return format_duration(((ended or datetime.now(timezone.utc)) - began).total_seconds())


def event_line(event: Event) -> str:
    """One event as one line of a log."""
    moment = parse_timestamp(event.timestamp)
    time = moment.strftime("%H:%M:%S") if moment else "--:--:--"
    return f"{time}  {_describe(event)}".rstrip()


def _describe(event: Event) -> str:
    if isinstance(event, TrainingLog):
        return _numbers(event)
    if isinstance(event, CheckpointSaved):
        return f"checkpoint {event.step} saved"
    if isinstance(event, TrainingStarted):
        return f"training, {event.total_steps} steps" if event.total_steps else "training"
    if isinstance(event, TrainingCompleted):
        return "completed"
    if isinstance(event, TrainingCancelled):
        return "cancelled"
    return one_line(_sentence(event))


def _sentence(event: TrainingPreparing | TrainingResumed | TrainingWarning | TrainingFailedEvent) -> str:
    if isinstance(event, TrainingPreparing):
        return event.message
    if isinstance(event, TrainingResumed):
        return f"resumed from step {event.step}: {event.reason}"
    return f"warning: {event.message}" if isinstance(event, TrainingWarning) else f"failed: {event.error}"


def _numbers(event: TrainingLog) -> str:
    parts = [f"step {event.step:<5}"]
    for name, value in (("loss", event.loss), ("eval loss", event.eval_loss)):
        if value is not None:
            parts.append(f"{name} {format_loss(value)}")
    if event.learning_rate is not None:
        parts.append(f"learning rate {event.learning_rate:.2e}")
    if event.epoch is not None:
        parts.append(f"epoch {event.epoch:.2f}")
    if event.samples_per_second is not None:
        parts.append(f"{event.samples_per_second:.1f} samples/s")
    return "  ".join(parts)


def is_interactive() -> bool:
    """Whether a person types here."""
    return sys.stdin is not None and sys.stdin.isatty()
