"""A project: scaffold one, run its trainer."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import TypeVar

import click

import arkor as package
from arkor.cli.errors import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    ProjectError,
    exit_code_of,
    project_error,
    source_location,
)
from arkor.cli.output import say, say_json
from arkor.errors import ArkorError, InvalidConfig
from arkor.project import find_entry, load_entry
from arkor.protocol.jobs import Artifact, JobStatus
from arkor.results.training_result import TrainingResult
from arkor.settings import arkor_home
from arkor.trainer.trainer import Trainer

T = TypeVar("T")

TEMPLATES = {
    "triage": "sort support tickets by category and urgency, as JSON",
    "translate": "translate short everyday sentences",
    "redaction": "replace personal data by tags",
}

_TEMPLATES_FOLDER = Path(package.__file__).parent / "templates"


@click.command()
@click.argument("directory", default=".", metavar="[DIR]", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--template",
    type=click.Choice(list(TEMPLATES)),
    default="triage",
    show_default=True,
    help="; ".join(f"{name}: {what}" for name, what in TEMPLATES.items()) + ".",
)
def init(directory: Path, template: str) -> None:
    """Write a project into DIR (default: here), ready to run without a network."""
    source = _TEMPLATES_FOLDER / template
    files = sorted(file.relative_to(source) for file in source.rglob("*") if _is_template_file(file))
    existing = [str(file) for file in files if (directory / file).exists()]
    if existing:
        raise click.UsageError(f"{directory} already has {', '.join(existing)}; nothing was written")
    for file in files:
        (directory / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / file, directory / file)
    say(f"Wrote a project that learns to {TEMPLATES[template]}:")
    for file in files:
        say(f"  {directory / file}")
    say("Next:")
    if directory.resolve() != Path.cwd():
        say(f"  cd {directory}")
    say("  arkor start")


def _is_template_file(file: Path) -> bool:
    return file.is_file() and "__pycache__" not in file.parts


@click.command()
@click.argument("entry", required=False, type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="The whole way, with a few rows and steps, to see that all of it works.")
@click.option("--json", "as_json", is_flag=True, help="Print how it ended as a JSON object; the rest goes to stderr.")
def start(entry: Path | None, *, dry_run: bool, as_json: bool) -> int:
    """Run the trainer of ENTRY (a file or a project's folder; default: here) and watch it to its end."""
    if dry_run:
        os.environ["ARKOR_DRY_RUN"] = "1"  # the entry may submit the run by itself when it is loaded
    file = find_entry(entry)
    try:
        with redirect_stdout(sys.stderr) if as_json else nullcontext():  # what the entry prints is none of the document
            result = _run(file)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    if not as_json:
        return _report_end(result)
    say_json({"job": result.job, "artifacts": result.artifacts})
    return EXIT_OK if result.job.status == JobStatus.COMPLETED else EXIT_FAILED


def _run(file: Path) -> TrainingResult:
    """Submit the run of that file and watch it; what interrupts it says how to go on."""
    trainer = project_code(file, lambda: load_entry(file))
    try:
        say(f"{trainer.name}: run {trainer.start().job_id}")
        return project_code(file, trainer.wait)
    except (KeyboardInterrupt, ProjectError):
        _print_resume_hint(trainer)
        raise
    except ArkorError as error:  # a callback that waits no longer, as a rule, or a backend that is gone
        if trainer.job_id is None:
            raise
        say(str(error), err=True)
        _print_resume_hint(trainer)
        raise click.exceptions.Exit(exit_code_of(error)) from error


def project_code(file: Path, call: Callable[[], T]) -> T:
    """What the project's code raises is shown as its author needs it; a wrong value is, with the line it stands in."""
    try:
        return call()
    except InvalidConfig as error:
        place = source_location(error, file)
        if place is None:
            raise
        raise click.UsageError(f"{place}: {error}") from error
    except (ArkorError, BrokenPipeError):
        raise
    except Exception as error:
        raise project_error(error) from error


def _print_resume_hint(trainer: Trainer) -> None:
    job_id = trainer.job_id
    if job_id is None:
        say("Nothing was submitted.", err=True)
    else:
        say(f"The run goes on. Watch it: arkor logs {job_id} --follow. Stop it: arkor cancel {job_id}", err=True)
        say(f'With its callbacks: Trainer.attach("{job_id}", callbacks=…).wait()', err=True)


def _report_end(result: TrainingResult) -> int:
    job = result.job
    sys.stdout.flush()
    if job.status != JobStatus.COMPLETED:
        say(f"Run {job.id} {job.status}{f': {job.error}' if job.error else '.'}", err=True)
        return EXIT_FAILED
    folder = _adapter_folder(result)
    if folder is not None:
        say(f"The adapter is in {folder}")
    say(f"Talk to it: arkor chat {job.id}   (with --system and the system prompt of its rows, if they have one)")
    return EXIT_OK


def _adapter_folder(result: TrainingResult) -> Path | None:
    """Where the final adapter lies, if it lies on this machine."""
    finals = [item.path for item in result.artifacts if isinstance(item, Artifact) and item.kind == "final"]
    folder = arkor_home() / "runs" / result.job.id / (finals[-1] or "") if finals else None
    return folder if folder is not None and folder.is_dir() else None
