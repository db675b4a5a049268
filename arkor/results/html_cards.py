"""A run, its end, or an answer as a notebook shows it: a line for `repr()`, a card of HTML.

Everything is escaped, and nothing is shown that opens a door: of an address only where it leads.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any
from urllib.parse import urlsplit

from arkor.formatting import format_duration, format_loss, seconds_between, shorten

# Stated wherever a notebook has rules of its own for tables: classic ones centre them, those of VS Code shade rows.
_CARD = "border-left:3px solid {colour};padding:2px 12px;margin:4px 0;max-width:640px;overflow-wrap:anywhere"
_TABLE = "border:none;border-collapse:collapse;margin:2px 0;font-size:inherit;table-layout:auto"
_CELL = "text-align:left;vertical-align:top;padding:1px 12px 1px 0;border:none;background:transparent"
_NAME = f"{_CELL};white-space:nowrap;opacity:.75"
_VALUE = f"{_CELL};white-space:pre-wrap;overflow-wrap:anywhere"

#: Of the border and the dot only: words take the colour of the page. At least 3:1 on the paper of any notebook.
_GREY = "#878787"
_COLOURS = {"completed": "#16a34a", "failed": "#ef4444", "cancelled": "#ab62f7", "running": "#3b82f6"}

_MAX_ARTIFACTS = 8
_MAX_VALUE_LENGTH = 2000
_SETTINGS = ("max_steps", "num_train_epochs", "learning_rate", "batch_size", "lora_r", "dry_run")

Rows = Iterable[tuple[str, Any]]


def job_card(job: Any) -> str:
    return _card(job.name, str(job.status), _job_rows(job))


def result_card(result: Any) -> str:
    return _card(result.job.name, str(result.job.status), [*_job_rows(result.job), *_result_rows(result)])


def text_card(text: str, note: str) -> str:
    """A text as it is, line breaks included, and a note below it."""
    content = f'<div dir="auto" style="white-space:pre-wrap">{escape(text)}</div>'
    footer = f'<div style="opacity:.75;font-size:90%">{escape(note)}</div>'
    return f'<div style="{_CARD.format(colour=_GREY)}">{content}{footer}</div>'


def _card(title: str, status: str, rows: Rows) -> str:
    colour = _COLOURS.get(status, _GREY)
    title_html = f'<b>{_bidi_isolated(title)}</b> <span style="color:{colour}">●</span> {_bidi_isolated(status)}'
    cells = "".join(
        f'<tr style="background:transparent"><td style="{_NAME}">{escape(name)}</td>'
        f'<td style="{_VALUE}">{_bidi_isolated(value)}</td></tr>'
        for name, value in rows
        if value
    )
    style = _CARD.format(colour=colour)
    return f'<div style="{style}"><div>{title_html}</div><table style="{_TABLE}">{cells}</table></div>'


def _bidi_isolated(text: Any) -> str:
    """What a stranger wrote, from the right to the left if that is its way, without turning round what is beside it."""
    return f"<bdi>{escape(shorten(str(text), _MAX_VALUE_LENGTH))}</bdi>"


def _job_rows(job: Any) -> Rows:
    yield "id", job.id
    yield "error", job.error or ""
    yield "model", _model(job) or ""
    yield "data", _source(getattr(job.config, "dataset_source", None))
    settings = [(name, getattr(job.config, name, None)) for name in _SETTINGS]
    yield "settings", ", ".join(f"{name} {value}" for name, value in settings if value is not None)
    yield "submitted", job.created_at
    seconds = seconds_between(job.started_at, job.completed_at)
    yield "took", "" if seconds is None else format_duration(seconds)


def _result_rows(result: Any) -> Rows:
    losses = [row.loss for row in result.history[-64:] if row.loss is not None]
    yield "last loss", format_loss(losses[-1]) if losses else ""
    if result.best is not None:
        yield "best checkpoint", f"step {result.best.step}, {result.best.metric} {format_loss(result.best.value)}"
    for evaluation in result.evaluations[-1:]:
        yield "evaluation", str(evaluation).partition("\n")[0]
    yield "time", str(result.estimate or "")
    shown = [_artifact(artifact) for artifact in result.artifacts[:_MAX_ARTIFACTS]]
    rest = len(result.artifacts) - len(shown)
    yield "artifacts", ", ".join([*shown, *([f"and {rest} more"] if rest > 0 else [])])
    if result.history:
        yield "history", f"{len(result.history)} logs; result.history draws them"


def _artifact(artifact: Any) -> str:
    return str(getattr(artifact, "path", None) or getattr(artifact, "kind", None) or type(artifact).__name__)


def _model(job: Any) -> str | None:
    return getattr(job.config, "model", None)


def _source(source: Any) -> str:
    """Where the rows come from; of a URL neither the user and password nor the query, which may be a key."""
    if url := getattr(source, "url", None):
        try:
            parts = urlsplit(str(url))
        except ValueError:
            return ""
        uploaded = not parts.hostname  # to the backend itself, under its digest
        return parts.path.rpartition("/")[2] if uploaded else f"{parts.scheme}://{parts.hostname}{parts.path}"
    return str(getattr(source, "name", None) or getattr(source, "path", None) or "")
