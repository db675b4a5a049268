"""HTML cards for notebooks: a job, a result, a text.

Every value is escaped, and a URL is shown without user, password and query, which may be secret.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any
from urllib.parse import urlsplit

from arkor.formatting import format_duration, format_loss, seconds_between, shorten

# Stated in full, because Jupyter centres the cells of tables and VS Code shades their rows.
_CARD = "border-left:3px solid {colour};padding:2px 12px;margin:4px 0;max-width:640px;overflow-wrap:anywhere"
_TABLE = "border:none;border-collapse:collapse;margin:2px 0;font-size:inherit;table-layout:auto"
_CELL = "text-align:left;vertical-align:top;padding:1px 12px 1px 0;border:none;background:transparent"
_NAME = f"{_CELL};white-space:nowrap;opacity:.75"
_VALUE = f"{_CELL};white-space:pre-wrap;overflow-wrap:anywhere"

#: Colours of the border and the dot, with a contrast of 3:1 on light and dark pages.
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
    """Return a card with a text, line breaks included, and a note below it."""
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


def _bidi_isolated(value: Any) -> str:
    """Escape a value and isolate it, as text from right to left would reorder its neighbours."""
    return f"<bdi>{escape(shorten(str(value), _MAX_VALUE_LENGTH))}</bdi>"


def _job_rows(job: Any) -> Rows:
    yield "id", job.id
    yield "error", job.error
    yield "model", getattr(job.config, "model", None)
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
    if result.evaluations:
        yield "evaluation", result.evaluations[-1].summary
    yield "time", result.estimate
    paths = [_artifact(artifact) for artifact in result.artifacts[:_MAX_ARTIFACTS]]
    rest = len(result.artifacts) - len(paths)
    yield "artifacts", ", ".join([*paths, *([f"and {rest} more"] if rest > 0 else [])])
    if result.history:
        yield "history", f"{len(result.history)} logs; result.history shows them"


def _artifact(artifact: Any) -> str:
    return str(getattr(artifact, "path", None) or getattr(artifact, "kind", None) or type(artifact).__name__)


def _source(source: Any) -> str:
    """Return the name, path or URL of a data set; of a URL only scheme, host and path."""
    if url := getattr(source, "url", None):
        try:
            parts = urlsplit(str(url))
        except ValueError:
            return ""
        # An uploaded file has no host, and its path is /v1/datasets/DIGEST/NAME.
        return f"{parts.scheme}://{parts.hostname}{parts.path}" if parts.hostname else parts.path.rpartition("/")[2]
    return str(getattr(source, "name", None) or getattr(source, "path", None) or "")
