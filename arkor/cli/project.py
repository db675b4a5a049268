"""The command `start`: run a project's trainer."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from arkor.cli import errors
from arkor.cli.output import only_json_on_stdout, say, say_json
from arkor.errors import ArkorError, InvalidConfig
from arkor.protocol.jobs import Artifact, JobStatus
from arkor.results.training_result import TrainingResult
from arkor.settings import arkor_home
from arkor.trainer.project import find_entry, load_entry
from arkor.trainer.trainer import Trainer

T = TypeVar("T")


@click.command()
@click.argument("entry", required=False, type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Run every stage with a few rows and steps, as a test.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as a JSON object, everything else to stderr.")
def start(entry: Path | None, *, dry_run: bool, as_json: bool) -> int:
    """Run a project's trainer and wait for its end.

    ENTRY is a file or a project's folder (default: here).
    """
    if dry_run:  # an environment variable, because the entry may submit the run when imported
        os.environ["ARKOR_DRY_RUN"] = "1"
    file = find_entry(entry)
    try:
        with only_json_on_stdout(as_json):
            result = _run(file)
    except KeyboardInterrupt:
        return errors.EXIT_INTERRUPTED
    if not as_json:
        return _report_end(result)
    say_json({"job": result.job, "artifacts": result.artifacts})
    return errors.EXIT_OK if result.job.status == JobStatus.COMPLETED else errors.EXIT_FAILED


def _run(file: Path) -> TrainingResult:
    """Submit the file's run and wait for its end; print how to resume watching if interrupted."""
    trainer = project_code(file, lambda: load_entry(file))
    try:
        say(f"{trainer.name}: run {trainer.start().job_id}")
        return project_code(file, trainer.wait)
    except (KeyboardInterrupt, errors.ProjectError):
        _print_resume_hint(trainer)
        raise
    except ArkorError as error:  # usually a timeout in a callback, or a backend that is gone
        if trainer.job_id is None:
            raise
        say(str(error), err=True)
        _print_resume_hint(trainer)
        raise click.exceptions.Exit(errors.exit_code_of(error)) from error


def project_code(file: Path, call: Callable[[], T]) -> T:
    """Call the project's code. Raises its errors as `ProjectError`, or as `click.UsageError`."""
    try:
        return call()
    except InvalidConfig as error:
        location = errors.source_location(error, file)
        if location is None:
            raise
        raise click.UsageError(f"{location}: {error}") from error
    except (ArkorError, BrokenPipeError):
        raise
    except Exception as error:
        raise errors.project_error(error) from error


def _print_resume_hint(trainer: Trainer) -> None:
    job_id = trainer.job_id
    if job_id is None:
        say("Nothing was submitted.", err=True)
    else:
        say(f"The run continues. Watch it: arkor logs {job_id} --follow. Stop it: arkor cancel {job_id}", err=True)
        say(f'To attach its callbacks: Trainer.attach("{job_id}", callbacks=…).wait()', err=True)


def _report_end(result: TrainingResult) -> int:
    job = result.job
    sys.stdout.flush()
    if job.status != JobStatus.COMPLETED:
        say(f"Run {job.id} {job.status}{f': {job.error}' if job.error else '.'}", err=True)
        return errors.EXIT_FAILED
    if folder := _adapter_folder(result):
        say(f"Adapter: {folder}")
    say(f"Chat with it: arkor chat {job.id}   (add --system if its rows have a system prompt)")
    return errors.EXIT_OK


def _adapter_folder(result: TrainingResult) -> Path | None:
    finals = [item.path for item in result.artifacts if isinstance(item, Artifact) and item.kind == "final"]
    folder = arkor_home() / "runs" / result.job.id / (finals[-1] or "") if finals else None
    return folder if folder is not None and folder.is_dir() else None
