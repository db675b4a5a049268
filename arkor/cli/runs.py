"""The runs of a project: list them, read their logs, cancel them."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import click

from arkor.charts.series import Curve
from arkor.charts.terminal import loss_plot
from arkor.cli.errors import EXIT_OK
from arkor.cli.output import as_json_option, event_line, format_elapsed, format_time, say, say_json, table
from arkor.client.api import CloudApiClient
from arkor.client.connect import connect
from arkor.client.http.deadline import Deadline
from arkor.client.streaming.backoff import ReconnectPolicy
from arkor.client.streaming.connection import StreamEnd
from arkor.client.streaming.event_stream import EventStream
from arkor.errors import CloudApiError
from arkor.formatting import one_line, parse_timestamp
from arkor.protocol.codec import dumps
from arkor.protocol.events import Event, TrainingLog, encode_event, now
from arkor.protocol.jobs import JobStatus, TrainingJob

_PLOT_ROWS = 30  # a higher plot shows no more
_QUIET_SECONDS = 1.0  # after which what was logged so far has come


def find_job(client: CloudApiClient, given: str) -> TrainingJob:
    """The run whose id is `given`, or the only one whose id begins so. Raises `click.BadParameter`."""
    found = client.list_jobs(id_prefix=given) if given else []
    matches = [job for job in found if job.id == given] or found
    if len(matches) == 1:
        return matches[0]
    if not matches:
        raise click.BadParameter(f"there is no run {given!r}; `arkor jobs` lists them", param_hint="JOB")
    ids = ", ".join(job.id for job in matches[:5])
    raise click.BadParameter(f"{given!r} is the beginning of {len(matches)} runs: {ids}", param_hint="JOB")


@click.command()
@click.option("-n", "--limit", type=click.IntRange(min=1), default=50, show_default=True, help="The newest so many.")
@click.option("--all", "everything", is_flag=True, help="All of them.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list instead of a table.")
def jobs(limit: int, everything: bool, as_json: bool) -> None:
    """List the runs, newest first."""
    found = connect().list_jobs(limit=None if everything else limit + 1)
    shown = found if everything else found[:limit]
    if as_json:
        say_json(shown)
    elif shown:
        rows = [
            (job.id, job.name, str(job.status), format_time(job.created_at), format_elapsed(job), _model(job))
            for job in shown
        ]
        say(table(("ID", "NAME", "STATUS", "SUBMITTED", "TOOK", "MODEL"), rows))
    else:
        say("There are no runs yet; `arkor init` writes a project, `arkor start` runs it.")
    if len(found) > len(shown):
        say(f"These are the newest {limit}; `arkor jobs --all` lists the older ones, too.", err=True)


def _model(job: TrainingJob) -> str:
    return str(getattr(job.config, "model", ""))


@click.command()
@click.argument("job")
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens, until the run ends.")
@click.option("--json", "as_json", is_flag=True, help="Print the events as they travel, one JSON object a line.")
@click.option("--plot", is_flag=True, help="Draw the losses instead; with --follow, when the run has ended.")
def logs(job: str, follow: bool, as_json: bool, plot: bool) -> None:
    """Print what a run has logged, from its beginning."""
    if plot and as_json:
        raise click.UsageError("--plot draws, --json prints for programs; take one of them")
    client = connect()
    found = find_job(client, job)
    if found.status == JobStatus.QUEUED and not follow:
        say(f"{found.id} is still queued; with --follow its log is printed as it comes.", err=True)
        return
    stream = EventStream(partial(_open, client, found.id), ReconnectPolicy())
    events = _live_events(stream) if follow or _has_ended(found) else _logged_so_far(stream)
    if plot:
        say(_plot(found, events))
        return
    for event in events:
        say(dumps(encode_event(event)) if as_json else event_line(event))


def _plot(job: TrainingJob, events: Iterable[Event]) -> str:
    """The losses, as large as the terminal allows; of a usual size where there is none."""
    loss, eval_loss = Curve(), Curve()
    for event in events:
        if isinstance(event, TrainingLog):
            for curve, value in ((loss, event.loss), (eval_loss, event.eval_loss)):
                if value is not None:
                    curve.add(event.step, value)
    size = shutil.get_terminal_size() if sys.stdout.isatty() else os.terminal_size((80, 24))
    plot = loss_plot(
        loss,
        eval_loss,
        columns=size.columns,
        rows=min(size.lines, _PLOT_ROWS) - 3,
        unicode="utf" in (sys.stdout.encoding or "").lower(),
        paint=lambda text, colour: click.style(text, fg=colour),
    )
    return f"{one_line(job.name)} ({job.id})\n{plot}"


def _open(client: CloudApiClient, job_id: str, cursor: str | None) -> Any:
    return client.open_event_stream(job_id, last_event_id=cursor)


def _has_ended(job: TrainingJob) -> bool:
    return isinstance(job.status, JobStatus) and job.status.terminal


def _live_events(stream: EventStream) -> Iterator[Event]:
    for event in stream.events(Deadline()):
        if isinstance(event, StreamEnd):
            return
        yield event


def _logged_so_far(stream: EventStream) -> Iterator[Event]:
    """What was logged up to now: a live stream does not say where its history ends, its time stamps and a pause do."""
    asked_at, deadline = parse_timestamp(now()), Deadline(expires_at=time.monotonic() + 10 * _QUIET_SECONDS)
    try:
        for event in stream.events(deadline):
            if isinstance(event, StreamEnd) or _is_later(event, asked_at):
                return
            yield event
            deadline.expires_at = time.monotonic() + _QUIET_SECONDS
    except TimeoutError:
        return


def _is_later(event: Event, reference: Any) -> bool:
    logged_at = parse_timestamp(event.timestamp)
    return logged_at is not None and logged_at > reference


@click.command()
@click.argument("job")
@as_json_option
def cancel(job: str, *, as_json: bool) -> int:
    """Stop a run; what it has saved so far is kept."""
    client = connect()
    found = find_job(client, job)
    try:
        client.cancel_job(found.id)
    except CloudApiError as error:
        if error.status != 409:
            raise
        say(f"{found.id} has already ended: it is {client.get_job(found.id).status}.", err=True)
        return 1
    if as_json:
        say_json(client.get_job(found.id))
        return EXIT_OK
    say(f"{found.id} is being cancelled; `arkor logs {found.id}` tells when it has stopped.")
    return EXIT_OK
