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

from arkor.errors import ArkorError, BackendUnavailable, CloudApiError, InvalidConfig, Problem
from arkor.formatting import format_bytes, format_duration, format_loss, parse_timestamp, seconds_between
from arkor.protocol.events import now
from arkor.protocol.jobs import JobConfig, TrainingJob
from arkor.protocol.step_counts import StepCountValidator, steps_of
from arkor.settings import VERSION

#: The labels of the forms' fields, by their Python names.
_LABELS = {
    "slug": "Name",
    "auth_mode": "Access",
    "run_retention_mode": "Conversations",
    "run_retention_days": "Days",
    "days": "Days",
    "label": "Label",
    **dict.fromkeys(("target.base_model", "base_model", "model", "step"), "Model"),
    "temperature": "Temperature",
    "top_p": "Top-p",
    "max_tokens": "Max tokens",
    "seed": "Seed",
    "stop": "Stop strings",
    **dict.fromkeys(("structured_outputs", "structured_outputs.json"), "Output format"),
}


def shell() -> str:
    """Return the frame of every page. It contains no data, so it is sent without a token."""
    return _ENVIRONMENT.get_template("shell.html").render()


def page(template: str, status: int = 200, /, **values: Any) -> Response:
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
        return toast(form_message(error), status=status)
    if request.url.path.startswith("/streams/"):
        return PlainTextResponse(form_message(error), status)
    kind = "unavailable" if isinstance(error, BackendUnavailable) else "missing" if status == 404 else "fault"
    return fault_page(request, status, kind, problem, error.remedy)


def form_message(error: ArkorError) -> str:
    """Return the message with the form's label instead of the name of the field."""
    label = _LABELS.get(python_name(error.field or ""), error.field)
    return str(Problem(error.problem, label, error.remedy))


def fault_page(request: Request, status: int, kind: str, problem: str, remedy: str | None = None) -> Response:
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
    return seconds_between(job.started_at, job.completed_at or now())


def format_elapsed(job: TrainingJob) -> str:
    seconds = elapsed_seconds(job)
    return "–" if seconds is None else format_duration(seconds)


def total_steps(job: TrainingJob) -> int | None:
    """Return the planned number of steps; the configured one if the backend does not report it."""
    return getattr(job.config, "max_steps", None) if job.total_steps is None else job.total_steps


def evaluation_note(job: TrainingJob) -> str:
    """Return a sentence for a run without an evaluation: when the first one is, if any."""
    config, total = job.config, total_steps(job)
    if not isinstance(config, JobConfig) or not config.evaluates:
        disables = isinstance(config, JobConfig) and config.eval_steps is not None
        reason = ": its dataset_split is not enabled." if disables else "; set eval_steps for some."
        return f"This run has no evaluations{reason}"
    if not isinstance(total, int) or config.dry_run or config.eval_steps is None:
        return "No evaluations yet."
    try:
        StepCountValidator(1)("eval_steps", config.eval_steps)
    except InvalidConfig:  # written by a backend that has other forms
        return "No evaluations yet."
    first = steps_of(config.eval_steps, total)
    if first > total:
        return f"This run has no evaluations: the first would be at step {first}."
    return f"The first evaluation is at step {first}."


def python_name(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)


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
_ENVIRONMENT.filters.update(evaluations=evaluation_note, took=format_elapsed, total=total_steps, when=format_time)
