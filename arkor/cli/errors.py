"""How a command ends: its exit code, and a message instead of a traceback.

0: success. 1: failure (a failed run, a busy backend). 2: a usage, configuration or machine error.
130: Ctrl-C.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import click

import arkor
from arkor import errors

EXIT_OK, EXIT_FAILED, USAGE_ERROR, EXIT_INTERRUPTED = 0, 1, 2, 130

_FAILURES = (errors.StreamLost, errors.TrainerAborted, errors.TrainingFailed)
_PACKAGE = str(Path(arkor.__file__).parent)


class ProjectError(Exception):
    """An exception from the project's own code; `str()` is its traceback without arkor's frames."""


def exit_code_of(error: errors.ArkorError) -> int:
    if isinstance(error, errors.CloudApiError):
        return EXIT_FAILED if error.status == 409 or errors.is_transient(error.status) else USAGE_ERROR
    return EXIT_FAILED if isinstance(error, _FAILURES) else USAGE_ERROR


def bad_parameter(error: errors.InvalidConfig, option: str) -> click.BadParameter:
    return click.BadParameter(str(errors.Problem(error.problem, remedy=error.remedy)), param_hint=option)


def run(command: Callable[[], object]) -> int:
    """Call a command; print any error to stderr and return the exit code."""
    try:
        result = command()
        if sys.stdout is not None:  # None if the caller closed standard output
            sys.stdout.flush()
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return handle_broken_pipe()
    except click.ClickException as error:
        error.show()
        return USAGE_ERROR
    except OSError as error:
        click.echo(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error), err=True)
        return USAGE_ERROR
    except (ProjectError, errors.ArkorError) as error:
        click.echo(str(error).rstrip(), err=True)
        return exit_code_of(error) if isinstance(error, errors.ArkorError) else USAGE_ERROR
    return result if isinstance(result, int) else EXIT_OK


def handle_broken_pipe() -> int:
    """End quietly after the reader (`| head`) has closed the pipe, also at the last flush."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_OK


def project_error(error: BaseException) -> ProjectError:
    """Format an exception with the frames of the project only."""
    foreign = (_PACKAGE, "<frozen importlib")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(foreign)]
    head = ["Traceback (most recent call last):\n"] if frames else []
    return ProjectError("".join(head + traceback.format_list(frames) + traceback.format_exception_only(error)))


def source_location(error: BaseException, file: Path) -> str | None:
    """Return the line of the file that raised an exception (`"train.py, line 12"`), or None."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return f"{file.name}, line {lines[-1]}" if lines else None
