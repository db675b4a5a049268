"""The commands `jobs`, `logs` and `cancel`: the runs of a project."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator

import click

from arkor.charts.terminal import loss_plot
from arkor.cli.errors import EXIT_FAILED, EXIT_OK
from arkor.cli.output import as_json_option, event_line, format_elapsed, format_time, say, say_result, table
from arkor.client.api import CloudApiClient
from arkor.client.connect import connect
from arkor.client.http.deadline import Deadline
from arkor.client.streaming.connection import StreamEnd
from arkor.client.streaming.event_stream import EventStream
from arkor.client.streaming.reconnect_policy import ReconnectPolicy
from arkor.errors import CloudApiError
from arkor.formatting import one_line, parse_timestamp
from arkor.protocol.codec import dumps
from arkor.protocol.events import Event, TrainingLog, encode_event, now
from arkor.protocol.jobs import JobStatus, TrainingJob
from arkor.results.history import History

_MAX_PLOT_ROWS = 30
_QUIET_SECONDS = 1.0  # a pause of this length ends the recorded part of a log


def find_job(client: CloudApiClient, given: str) -> TrainingJob:
    """Return the only run whose id is or starts with this. Raises `click.BadParameter`."""
    found = client.list_jobs(id_prefix=given) if given else []
    matches = [job for job in found if job.id == given] or found
    if len(matches) == 1:
        return matches[0]
    if not matches:
        raise click.BadParameter(f"no run has the id {given!r}; `arkor jobs` lists the runs", param_hint="JOB")
    ids = ", ".join(job.id for job in matches[:5])
    raise click.BadParameter(f"the ids of {len(matches)} runs start with {given!r}: {ids}", param_hint="JOB")


@click.command()
@click.option(
    "-n", "--limit", type=click.IntRange(min=1), default=50, show_default=True, help="The number of runs to list."
)
@click.option("--all", "everything", is_flag=True, help="List every run.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list instead of a table.")
def jobs(limit: int, everything: bool, as_json: bool) -> None:
    """List the runs, newest first."""
    found = connect().list_jobs(limit=None if everything else limit + 1)
    listed = found if everything else found[:limit]
    rows = [
        (j.id, j.name, j.status, format_time(j.created_at), format_elapsed(j), getattr(j.config, "model", ""))
        for j in listed
    ]
    text = table(("ID", "NAME", "STATUS", "SUBMITTED", "TOOK", "MODEL"), rows)
    none = "No runs yet. `arkor init` writes a project, `arkor start` runs it."
    say_result(listed, as_json, text if listed else none)
    if len(found) > len(listed):
        say(f"Showing the newest {limit}; `arkor jobs --all` lists every run.", err=True)


@click.command()
@click.argument("job")
@click.option("-f", "--follow", is_flag=True, help="Continue with new events until the run ends.")
@click.option("--json", "as_json", is_flag=True, help="Print the events as JSON, one object per line.")
@click.option("--plot", is_flag=True, help="Plot the losses instead; with --follow, after the run has ended.")
def logs(job: str, follow: bool, as_json: bool, plot: bool) -> None:
    """Print the log of a run from its start."""
    if plot and as_json:
        raise click.UsageError("--plot and --json cannot be used together")
    client = connect()
    found = find_job(client, job)
    if found.status == JobStatus.QUEUED and not follow:
        say(f"{found.id} is still queued; use --follow to wait for its log.", err=True)
        return
    stream = EventStream(lambda cursor: client.open_event_stream(found.id, last_event_id=cursor), ReconnectPolicy())
    ended = isinstance(found.status, JobStatus) and found.status.terminal
    events = _events(stream, Deadline()) if follow or ended else _recorded_events(stream)
    if plot:
        say(_plot(found, events))
        return
    for event in events:
        say(dumps(encode_event(event)) if as_json else event_line(event))


def _plot(job: TrainingJob, events: Iterable[Event]) -> str:
    """Plot the losses in the size of the terminal, or in 80 columns if the output is not one."""
    history = History()
    for event in events:
        if isinstance(event, TrainingLog):
            history.add(event.step, event.loss, event.eval_loss)
    size = shutil.get_terminal_size() if sys.stdout.isatty() else os.terminal_size((80, 24))
    plot = loss_plot(
        *history.curves(),
        columns=size.columns,
        rows=min(size.lines, _MAX_PLOT_ROWS) - 3,
        unicode="utf" in (sys.stdout.encoding or "").lower(),
        paint=lambda text, colour: click.style(text, fg=colour),
    )
    return f"{one_line(job.name)} ({job.id})\n{plot}"


def _events(stream: EventStream, deadline: Deadline) -> Iterator[Event]:
    for event in stream.events(deadline):
        if isinstance(event, StreamEnd):
            return
        yield event


def _recorded_events(stream: EventStream) -> Iterator[Event]:
    """Yield the events up to now.

    A live stream does not mark the end of its recorded part. It has been reached at an event that
    is newer than the call, or after a pause.
    """
    called_at, deadline = parse_timestamp(now()), Deadline(expires_at=time.monotonic() + 10 * _QUIET_SECONDS)
    try:
        for event in _events(stream, deadline):
            logged_at = parse_timestamp(event.timestamp)
            if logged_at and called_at and logged_at > called_at:
                return
            yield event
            deadline.expires_at = time.monotonic() + _QUIET_SECONDS
    except TimeoutError:
        return


@click.command()
@click.argument("job")
@as_json_option
def cancel(job: str, *, as_json: bool) -> int:
    """Cancel a run; what it has saved is kept."""
    client = connect()
    found = find_job(client, job)
    has_ended = isinstance(found.status, JobStatus) and found.status.terminal
    try:
        client.cancel_job(found.id)  # for a run that has ended, the managed cloud may answer with a success
    except CloudApiError as error:
        if error.status != 409:
            raise
        has_ended = True
    if has_ended:
        say(f"{found.id} has already ended: {client.get_job(found.id).status}.", err=True)
        return EXIT_FAILED
    text = f"{found.id} is being cancelled; `arkor logs {found.id} --follow` waits for its end."
    say_result(client.get_job(found.id) if as_json else None, as_json, text)
    return EXIT_OK
