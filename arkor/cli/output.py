"""What the commands print: text, tables, JSON, times and events."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from typing import Any

import click

from arkor.formatting import format_duration, format_loss, one_line, parse_timestamp, seconds_between
from arkor.protocol import events
from arkor.protocol.codec import to_wire
from arkor.protocol.jobs import TrainingJob

_COLOURS = {"queued": "yellow", "running": "cyan", "completed": "green", "failed": "red", "cancelled": "magenta"}


def say(text: str = "", *, err: bool = False, nl: bool = True) -> None:
    """Print text; without colours outside of a terminal or if `NO_COLOR` or `TERM=dumb` is set."""
    click.echo(text, err=err, nl=nl, color=None if may_colour() else False)


def may_colour() -> bool:
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def prints_utf8() -> bool:
    return (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "") == "utf8"


as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


def say_json(data: Any) -> None:
    """Print one JSON document; non-ASCII characters are escaped if the output is not UTF-8."""
    say(json.dumps(to_wire(data), indent=2, ensure_ascii=not prints_utf8()))


def only_json_on_stdout(as_json: bool) -> AbstractContextManager[object]:
    """With `as_json`, redirect other output to stderr: standard output is the document alone."""
    return redirect_stdout(sys.stderr) if as_json else nullcontext()


def say_result(data: Any, as_json: bool, *lines: str) -> None:
    if as_json:
        say_json(data)
    else:
        say("\n".join(lines))


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Align rows in columns of the width of their longest cell."""
    lines = [[one_line(str(text)) for text in row] for row in (head, *rows)]
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
    seconds = seconds_between(job.started_at, job.completed_at or events.now())
    return "-" if seconds is None else format_duration(seconds)


def event_line(event: events.Event) -> str:
    moment = parse_timestamp(event.timestamp)
    time = moment.strftime("%H:%M:%S") if moment else "--:--:--"
    return f"{time}  {_describe(event)}".rstrip()


def _describe(event: events.Event) -> str:
    if isinstance(event, events.TrainingLog):
        return _numbers(event)
    match event:
        case events.CheckpointSaved():
            text = f"checkpoint {event.step} saved"
        case events.TrainingStarted():
            text = f"training, {event.total_steps} steps" if event.total_steps else "training"
        case events.TrainingCompleted() | events.TrainingCancelled():
            text = "completed" if isinstance(event, events.TrainingCompleted) else "cancelled"
        case events.TrainingResumed():
            text = f"resumed from step {event.step}: {event.reason}"
        case events.TrainingFailedEvent():
            text = f"failed: {event.error}"
        case events.TrainingWarning():
            text = f"warning: {event.message}"
        case _:
            text = event.message
    return one_line(text)


def _numbers(event: events.TrainingLog) -> str:
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
    return sys.stdin is not None and sys.stdin.isatty()
