"""The commands `export-run` and `import`: a run as a zip file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from arkor.cli.output import as_json_option, say_result
from arkor.cli.runs import find_job
from arkor.client.api import CloudApiClient
from arkor.client.connect import connect
from arkor.errors import ArkorError, CloudApiError
from arkor.formatting import format_bytes
from arkor.protocol.jobs import JobStatus


@click.command("export-run")
@click.argument("job")
@click.option(
    "-o", "--output", metavar="FILE", type=click.Path(path_type=Path), help="Default: the run's id, with .zip."
)
@as_json_option
def export_run(job: str, output: Path | None, *, as_json: bool) -> None:
    """Write a finished run to a zip file.

    The zip contains the run's configuration, every event, the worker's log, the checkpoints and the
    final adapter.
    """
    client = connect()
    found = find_job(client, job)
    file = (output or Path(f"{found.id}.zip")).expanduser()
    if file.exists():
        raise click.UsageError(f"{file} already exists; choose another file with -o")
    with _unsupported_errors(client):
        client.export_job(found.id, file)
    size = file.stat().st_size
    text = f"Wrote {found.name} to {file} ({format_bytes(size)}). On another machine: arkor import {file.name}"
    say_result({"id": found.id, "file": str(file), "bytes": size}, as_json, text)


@click.command("import")
@click.argument("path", type=click.Path(path_type=Path, exists=True))
@as_json_option
def import_run(path: Path, *, as_json: bool) -> None:
    """Import a run from another machine.

    PATH is a zip from `arkor export-run`, or a copy of a run's folder. An imported run has its log,
    its checkpoints and its adapters, as if it had been trained here.

    A run that was copied before it had finished is imported as failed, with everything that it had
    saved.
    """
    client = connect()
    with _unsupported_errors(client):
        job = client.import_job(path)
    chat = f" Chat with it: arkor chat {job.id}" if job.status == JobStatus.COMPLETED else ""
    imported = f"Imported {job.name}: {job.id}, {job.status}."
    say_result(job, as_json, imported, f"Read its log: arkor logs {job.id}.{chat}")


@contextmanager
def _unsupported_errors(client: CloudApiClient) -> Iterator[None]:
    """Explain the error of a backend that has no route for this."""
    try:
        yield
    except CloudApiError as error:
        if error.status not in (404, 405) or error.code not in (None, "not_found", "method_not_allowed"):
            raise
        raise ArkorError(
            f"the backend at {client.base_url} does not support this. If it runs an older arkor, upgrade it; the "
            "backend of this machine is upgraded automatically once its runs have finished."
        ) from error
