"""Runs as files: one written to a zip, one taken in from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from arkor.cli.output import as_json_option, say, say_json
from arkor.cli.runs import find_job
from arkor.client.api import CloudApiClient
from arkor.client.connect import connect
from arkor.errors import ArkorError, CloudApiError
from arkor.protocol.jobs import JobStatus


@click.command("export-run")
@click.argument("job")
@click.option(
    "-o", "--output", metavar="FILE", type=click.Path(path_type=Path), help="Default: the run's id, with .zip."
)
@as_json_option
def export_run(job: str, output: Path | None, *, as_json: bool) -> None:
    """Write a run that has ended to a zip.

    In it are what was asked for, every event, the worker's log, the checkpoints and the final adapter.
    """
    client = connect()
    found = find_job(client, job)
    file = (output or Path(f"{found.id}.zip")).expanduser()
    if file.exists():
        raise click.UsageError(f"{file} is there already; name another file with -o")
    with _unsupported_errors(client):
        client.export_job(found.id, file)
    if as_json:
        say_json({"id": found.id, "file": str(file), "bytes": file.stat().st_size})
        return
    say(f"{found.name} is in {file} ({_size(file)}). Elsewhere: arkor import {file.name}")


@click.command("import")
@click.argument("path", type=click.Path(path_type=Path, exists=True))
@as_json_option
def import_run(path: Path, *, as_json: bool) -> None:
    """Take in a run from elsewhere.

    PATH is the zip of `arkor export-run`, or a copy of a run's folder. It can be looked at and talked to from then
    on as if it had been trained here.

    A run that had not ended when it was copied counts as failed here, with all that it had saved.
    """
    client = connect()
    with _unsupported_errors(client):
        job = client.import_job(path)
    if as_json:
        say_json(job)
        return
    say(f"{job.name} is among your runs: {job.id}, {job.status}.")
    hint = f". Talk to it: arkor chat {job.id}" if job.status == JobStatus.COMPLETED else ""
    say(f"Its log: arkor logs {job.id}{hint}")


@contextmanager
def _unsupported_errors(client: CloudApiClient) -> Iterator[None]:
    """A backend that knows no such route says so in words for a machine."""
    try:
        yield
    except CloudApiError as error:
        if error.status not in (404, 405) or error.code not in (None, "not_found", "method_not_allowed"):
            raise
        raise ArkorError(
            f"the backend at {client.base_url} cannot do this; if it is one of an older arkor, upgrade it "
            "(that of this machine is replaced by itself once its runs have ended)"
        ) from error


def _size(file: Path) -> str:
    """`"1.2 MB"`."""
    size = float(file.stat().st_size)
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
