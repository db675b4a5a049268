"""HTML responses: pages, parts of pages and errors; the format of numbers and times in them.

Jinja escapes every value, so a run named `<img onerror=…>` is shown as its name.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from arkor.errors import ArkorError, BackendUnavailable, CloudApiError, Problem
from arkor.formatting import format_bytes, format_duration, format_loss, parse_timestamp, seconds_between
from arkor.protocol.events import now
from arkor.protocol.jobs import TrainingJob
from arkor.settings import VERSION

#: The entries of the navigation: path, label, icon.
PAGES = (
    ("/", "Overview", "home"),
    ("/runs", "Runs", "runs"),
    ("/playground", "Playground", "chat"),
    ("/endpoints", "Endpoints", "endpoint"),
)


def shell() -> str:
    """Return the frame of every page. It contains no data, so it is sent without a token."""
    return _ENVIRONMENT.get_template("shell.html").render(pages=PAGES)


def page(template: str, status: int = 200, /, **values: Any) -> Response:
    """Render a template: a page or a part of one."""
    return HTMLResponse(_ENVIRONMENT.get_template(template).render(**values), status)


def toast(message: str, *, kind: str = "fault", status: int = 200) -> Response:
    """Return a notification, which replaces the result of an action."""
    response = page("parts/toast.html", status, sentence=message, kind=kind)
    response.headers.update({"HX-Retarget": "#toasts", "HX-Reswap": "beforeend"})
    return response


def redirect(address: str) -> Response:
    """Send the browser to another page after an action."""
    return Response(status_code=204, headers={"HX-Redirect": address})


def fault(request: Request, error: Exception) -> Response:
    """Render an `ArkorError`: as a notification after an action, else in place of the part."""
    assert isinstance(error, ArkorError)  # noqa: S101 - registered for this class only
    problem, status = str(Problem(error.problem, error.field)), _status(error)
    if request.url.path.startswith("/actions/"):
        return toast(str(Problem(problem, remedy=error.remedy)), status=status)
    if request.url.path.startswith("/streams/"):
        return PlainTextResponse(str(Problem(problem, remedy=error.remedy)), status)
    kind = "unavailable" if isinstance(error, BackendUnavailable) else "missing" if status == 404 else "fault"
    return fault_page(request, status, kind, problem, error.remedy)


def fault_page(request: Request, status: int, kind: str, problem: str, remedy: str | None = None) -> Response:
    """Render an error in place of a page or a part."""
    return page("parts/fault.html", status, kind=kind, problem=problem, remedy=remedy, again=request.url.path)


def error_page(request: Request, error: Exception) -> Response:  # noqa: ARG001 - a handler's signature
    """Render an unexpected exception; its traceback is printed to the terminal of Studio."""
    problem, remedy = "Studio has an internal error.", "The terminal in which it was started shows the details."
    if request.url.path.startswith("/actions/"):
        return toast(f"{problem} {remedy}", status=500)
    return fault_page(request, 500, "fault", problem, remedy)


def _status(error: ArkorError) -> int:
    """Return the status; not the backend's 401, which is not about Studio's own token."""
    if isinstance(error, CloudApiError):
        return error.status if error.status in (400, 404, 409, 413, 429) else 502
    return 502 if isinstance(error, BackendUnavailable) else 400


def sentence(text: str) -> str:
    """Capitalise the first letter of a message; the command line prints it after a prefix."""
    return text[:1].upper() + text[1:]


def loss(value: float | None) -> str:
    """Format a loss; a dash for None, `NaN` for a diverged one."""
    if value is None:
        return "–"
    return format_loss(value) if math.isfinite(value) else "NaN" if value != value else "∞"


def format_time(timestamp: str | None) -> str:
    """Format a timestamp as local time (`"1 Mar, 14:05"`)."""
    moment = parse_timestamp(timestamp)
    return f"{moment.day} {moment:%b, %H:%M}" if moment else "–"


def elapsed_seconds(job: TrainingJob) -> float | None:
    """Return how long a run took, or has been running; None before its start."""
    return seconds_between(job.started_at, job.completed_at or now())


def format_elapsed(job: TrainingJob) -> str:
    """Format how long a run took (`"1:42"`)."""
    seconds = elapsed_seconds(job)
    return "–" if seconds is None else format_duration(seconds)


def total_steps(job: TrainingJob) -> int | None:
    """Return the planned number of steps; the configured one if the backend does not report it."""
    return getattr(job.config, "max_steps", None) if job.total_steps is None else job.total_steps


def model_of(job: TrainingJob) -> str:
    return str(getattr(job.config, "model", "") or "–")


_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.globals.update(version=VERSION)
_ENVIRONMENT.filters.update(loss=loss, model=model_of, sentence=sentence, size=format_bytes)
_ENVIRONMENT.filters.update(took=format_elapsed, total=total_steps, when=format_time)
