"""How a command ends: exit codes, and one sentence instead of a traceback.

0 it worked; 1 it did not (a run that failed, a backend that is busy); 2 a wrong call, configuration or machine;
130 Ctrl-C.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import click

import arkor
from arkor.errors import ArkorError, CloudApiError, StreamLost, TrainerAborted, TrainingFailed

EXIT_OK, EXIT_FAILED, USAGE_ERROR, EXIT_INTERRUPTED = 0, 1, 2, 130

_PACKAGE = str(Path(arkor.__file__).parent)
_RETRYABLE_STATUSES = {409, 429}  # and everything from 500


class ProjectError(Exception):
    """The project's own code raised; the text is its traceback without our frames."""


def exit_code_of(error: ArkorError) -> int:
    if isinstance(error, CloudApiError):
        return EXIT_FAILED if error.status in _RETRYABLE_STATUSES or error.status >= 500 else USAGE_ERROR
    return EXIT_FAILED if isinstance(error, (StreamLost, TrainerAborted, TrainingFailed)) else USAGE_ERROR


def run(command: Callable[[], object]) -> int:
    """Call a command and turn whatever it raises into words on stderr and an exit code."""
    try:
        result = command()
        if sys.stdout is not None:  # there is none where it was closed before we began
            sys.stdout.flush()
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return handle_broken_pipe()
    except (click.ClickException, ProjectError, ArkorError, OSError) as error:
        return _report(error)
    return result if isinstance(result, int) else EXIT_OK


def _report(error: Exception) -> int:
    if isinstance(error, click.ClickException):
        error.show()
        return USAGE_ERROR
    click.echo((_sentence(error) if isinstance(error, OSError) else str(error)).rstrip(), err=True)
    return exit_code_of(error) if isinstance(error, ArkorError) else USAGE_ERROR


def handle_broken_pipe() -> int:
    """Whoever read our output (`| head`) has enough; the interpreter's last flush must not complain either."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_OK


def _sentence(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)


def project_error(error: BaseException) -> ProjectError:
    """The person's own part of a traceback, from their file on; ours and the importer's frames tell them nothing."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_project_code(frame.filename)]
    head = ["Traceback (most recent call last):\n"] if frames else []
    return ProjectError("".join(head + traceback.format_list(frames) + traceback.format_exception_only(error)))


def source_location(error: BaseException, file: Path) -> str | None:
    """`"train.py, line 12"`: where in that file an error came out of, if it did."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return f"{file.name}, line {lines[-1]}" if lines else None


def _is_project_code(filename: str) -> bool:
    return not filename.startswith((_PACKAGE, "<frozen importlib"))
