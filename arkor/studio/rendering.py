"""Templates → answers: the shell, pages and parts of them, faults as sentences; how numbers and times read.

Jinja escapes whatever is put into a template, so that a run named `<img onerror=…>` is just a name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from arkor.errors import ArkorError, BackendUnavailable, CloudApiError
from arkor.formatting import format_duration, format_loss, parse_timestamp
from arkor.protocol.jobs import TrainingJob
from arkor.settings import VERSION

_FOLDER = Path(__file__).parent

#: The entries of the navigation: address, label, icon.
PAGES = (
    ("/", "Overview", "home"),
    ("/runs", "Runs", "runs"),
    ("/playground", "Playground", "chat"),
    ("/endpoints", "Endpoints", "endpoint"),
)


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(loss=loss, sentence=sentence, size=size, took=format_elapsed, when=format_time)
    environment.globals.update(version=VERSION)
    return environment


def shell() -> str:
    """The page around all pages. There is nothing of anybody's in it: whoever asks gets it."""
    return _ENVIRONMENT.get_template("shell.html").render(pages=PAGES)


def register_filters(**filters: Callable[[Any], Any]) -> None:
    """Give templates further words for what rooms above this one know."""
    _ENVIRONMENT.filters.update(filters)


def page(template: str, status: int = 200, /, **values: Any) -> Response:
    """A template as an answer: a page, or a part of one."""
    return HTMLResponse(_ENVIRONMENT.get_template(template).render(**values), status)


def toast(message: str, *, kind: str = "fault", status: int = 200) -> Response:
    """A word that appears in the corner, whatever the action was meant to change."""
    headers = {"HX-Retarget": "#toasts", "HX-Reswap": "beforeend"}
    html = _ENVIRONMENT.get_template("parts/toast.html").render(sentence=message, kind=kind)
    return HTMLResponse(html, status, headers)


def redirect(address: str) -> Response:
    """Lead the browser to another page once an action is done."""
    return Response(status_code=204, headers={"HX-Redirect": address})


# Faults


def fault(request: Request, error: Exception) -> Response:
    """What arkor raises on purpose, where it was to be seen: instead of the part, or in the corner for an action."""
    assert isinstance(error, ArkorError)  # noqa: S101 - it is registered for no other
    message = error.message if isinstance(error, CloudApiError) else str(error)
    status = _status(error)
    if request.url.path.startswith("/actions/"):
        return toast(message, status=status)
    if request.url.path.startswith("/streams/"):
        return PlainTextResponse(message, status)
    kind = "unavailable" if isinstance(error, BackendUnavailable) else "missing" if status == 404 else "fault"
    return page("parts/fault.html", status, kind=kind, sentence=message, again=request.url.path)


def error_page(request: Request, error: Exception) -> Response:  # noqa: ARG001 - the signature of a handler
    """What nobody has foreseen: a word for the person; the traceback goes to the terminal of Studio."""
    message = "Studio itself has made a mistake. What exactly is in the terminal that it was started in."
    if request.url.path.startswith("/actions/"):
        return toast(message, status=500)
    return page("parts/fault.html", 500, kind="fault", sentence=message, again=request.url.path)


def _status(error: ArkorError) -> int:
    """Never 401 and its like: those are between the backend and Studio, and the browser's token is another one."""
    if isinstance(error, CloudApiError):
        return error.status if error.status in (400, 404, 409, 413, 429) else 502
    return 502 if isinstance(error, BackendUnavailable) else 400


# How numbers and times read


def sentence(text: str) -> str:
    """With a capital at its beginning: what the command line prints behind a name stands alone here."""
    return text[:1].upper() + text[1:]


def loss(value: Any) -> str:
    """A loss in few characters; a dash for none, `NaN` for one that diverged."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "–"
    return format_loss(float(value)) if math.isfinite(value) else "NaN" if value != value else "∞"


def size(count: int | None) -> str:
    """Bytes for a person: `"1.2 MB"`."""
    if count is None:
        return "–"
    amount, unit = float(count), "bytes"
    for bigger in ("kB", "MB", "GB", "TB"):
        if amount < 1000:
            break
        amount, unit = amount / 1000, bigger
    return f"{amount:.3g} {unit}"


def format_time(timestamp: str | None) -> str:
    """`"1 Mar, 14:05"`, local time."""
    moment = parse_timestamp(timestamp)
    return f"{moment.day} {moment:%b, %H:%M}" if moment else "–"


def seconds_of(job: TrainingJob) -> float | None:
    """How long the run took, or has been taking; None before it began."""
    began, ended = parse_timestamp(job.started_at), parse_timestamp(job.completed_at)
    if began is None:
        return None
    return max(0.0, ((ended or datetime.now(timezone.utc)) - began).total_seconds())


def format_elapsed(job: TrainingJob) -> str:
    """The same in words: `"1:42"`."""
    seconds = seconds_of(job)
    return "–" if seconds is None else format_duration(seconds)


_ENVIRONMENT = _environment()
