"""What the commands print: text, tables, JSON, times and events."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from arkor.formatting import format_duration, format_loss, one_line, parse_timestamp, seconds_between
from arkor.protocol.codec import to_wire
from arkor.protocol.events import (
    CheckpointSaved,
    Event,
    TrainingCancelled,
    TrainingCompleted,
    TrainingFailedEvent,
    TrainingLog,
    TrainingResumed,
    TrainingStarted,
    TrainingWarning,
    now,
)
from arkor.protocol.jobs import TrainingJob

_COLOURS = {"queued": "yellow", "running": "cyan", "completed": "green", "failed": "red", "cancelled": "magenta"}


def say(text: str = "", *, err: bool = False, nl: bool = True) -> None:
    """Print text; without colours outside of a terminal or if `NO_COLOR` or `TERM=dumb` is set."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    click.echo(text, err=err, nl=nl, color=False if plain else None)


as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


def say_json(data: Any) -> None:
    """Print one JSON document; non-ASCII characters are escaped if the output is not UTF-8."""
    is_utf8 = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "") == "utf8"
    say(json.dumps(to_wire(data), indent=2, ensure_ascii=not is_utf8))


def say_result(data: Any, as_json: bool, *lines: str) -> None:
    """Print the result of a command: as JSON, or as lines of text."""
    if as_json:
        say_json(data)
    else:
        say("\n".join(lines))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align rows in columns of the width of their longest cell."""
    lines = [[one_line(text) for text in row] for row in (head, *rows)]
    widths = [max(len(text) for text in column) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(_cell, line, widths)).rstrip() for line in lines)


def _cell(text: str, width: int) -> str:
    padded = text.ljust(width)
    return click.style(padded, fg=_COLOURS[text]) if text in _COLOURS else padded


def format_time(timestamp: str | None) -> str:
    """Format a timestamp as local time (`"2026-03-01 14:05"`)."""
    moment = parse_timestamp(timestamp)
    return moment.strftime("%Y-%m-%d %H:%M") if moment else "-"


def format_elapsed(job: TrainingJob) -> str:
    """Format how long a run took, or has been running (`"1:42"`)."""
    seconds = seconds_between(job.started_at, job.completed_at or now())
    return "-" if seconds is None else format_duration(seconds)


def event_line(event: Event) -> str:
    """Format an event as one line of a log."""
    moment = parse_timestamp(event.timestamp)
    time = moment.strftime("%H:%M:%S") if moment else "--:--:--"
    return f"{time}  {_describe(event)}".rstrip()


def _describe(event: Event) -> str:
    if isinstance(event, TrainingLog):
        return _numbers(event)
    match event:
        case CheckpointSaved():
            text = f"checkpoint {event.step} saved"
        case TrainingStarted():
            text = f"training, {event.total_steps} steps" if event.total_steps else "training"
        case TrainingCompleted() | TrainingCancelled():
            text = "completed" if isinstance(event, TrainingCompleted) else "cancelled"
        case TrainingResumed():
            text = f"resumed from step {event.step}: {event.reason}"
        case TrainingFailedEvent():
            text = f"failed: {event.error}"
        case TrainingWarning():
            text = f"warning: {event.message}"
        case _:
            text = event.message
    return one_line(text)


def _numbers(event: TrainingLog) -> str:
    columns: tuple[tuple[float | None, Callable[[float], str]], ...] = (
        (event.loss, lambda value: f"loss {format_loss(value)}"),
        (event.eval_loss, lambda value: f"eval loss {format_loss(value)}"),
        (event.learning_rate, "learning rate {:.2e}".format),
        (event.epoch, "epoch {:.2f}".format),
        (event.samples_per_second, "{:.1f} samples/s".format),
    )
    numbers = [form(value) for value, form in columns if value is not None]
    return "  ".join([f"step {event.step:<5}", *numbers])


def is_interactive() -> bool:
    """True if standard input is a terminal."""
    return sys.stdin is not None and sys.stdin.isatty()
