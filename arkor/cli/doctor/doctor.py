"""`arkor doctor`: what is wrong with an installation, and how to mend it.

What is looked at is in `installation.py` and `local_backend.py`, and for what only the backend's half knows in a
process of its own (`backend/diagnostics.py`). Here is how it is gathered and told.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
from attrs import frozen

from arkor.cli.doctor import installation, local_backend
from arkor.cli.errors import EXIT_FAILED
from arkor.cli.errors import EXIT_OK as DONE
from arkor.cli.output import say, say_json
from arkor.client.local_backend import EXIT_ALREADY_SERVING, server_environment
from arkor.protocol.codec import from_wire, to_wire
from arkor.protocol.diagnostics import OK, PROBLEM, WARNING, Diagnostic
from arkor.settings import VERSION, arkor_home

#: Seconds for the libraries that train to be imported, and for ten thousand runs to be looked through.
INSPECTION_TIMEOUT = 120.0

_COLOURS = {OK: "green", WARNING: "yellow", PROBLEM: "red"}
_LEVEL_WIDTH, _SUBJECT_WIDTH = 7, 11


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object instead of lines.")
@click.option("--rebuild", is_flag=True, help="Make the database anew from the runs' folders; the old one is kept.")
def doctor(as_json: bool, rebuild: bool) -> int:
    """Look for what is wrong with this installation, and say how to mend it.

    Nothing is started, fetched or changed. The exit code is 1 when there is a problem.
    """
    home = arkor_home()
    if rebuild:
        return _rebuild(home)
    diagnostics = []
    for diagnostic in diagnose(home):
        diagnostics.append(diagnostic)
        if not as_json:
            say(_format_diagnostic(diagnostic, _width()))
    if as_json:
        say_json(_report(diagnostics))
    else:
        say(_summary(diagnostics))
    return EXIT_FAILED if any(diagnostic.level == PROBLEM for diagnostic in diagnostics) else DONE


# Looking


def diagnose(home: Path) -> Iterator[Diagnostic]:
    """Everything, from the ground up; what takes long is begun first."""
    backend_choice, url = installation.check_backend_choice()
    is_local = url is None
    missing = installation.missing_packages()
    device = None if missing else _Inspection.start("device")
    starter = None if "sqlalchemy" in missing else _Inspection.start("starter", "--home", str(home))
    yield from _guarded("packages", installation.check_installation(needed=is_local))
    if device:
        yield from device.diagnostics(required=is_local)
    yield from _guarded("home", installation.check_home(home))
    yield from _guarded("space", installation.check_space(home))
    if starter:
        yield from starter.diagnostics(required=is_local)
    yield from _guarded("sign-in", installation.check_sign_in())
    yield from backend_choice
    if url is not None:
        yield from _guarded("backend", installation.check_remote_backend(url))
    yield from _guarded("process", local_backend.check_local_backend(home))
    if "sqlalchemy" not in missing and home.is_dir():
        serving = ["--serving"] if local_backend.is_serving(home) else []
        yield from _Inspection.start("store", "--home", str(home), *serving).diagnostics(required=is_local)
    yield from _guarded("network", installation.check_network(url))


def _guarded(subject: str, diagnostics: Iterable[Diagnostic]) -> Iterator[Diagnostic]:
    """What cannot even be looked at is a finding, too."""
    try:
        yield from diagnostics
    except Exception as error:  # noqa: BLE001 - a doctor does not faint
        yield Diagnostic(subject, PROBLEM, f"it cannot be looked at ({type(error).__name__}: {error})")


@frozen
class _Inspection:
    """A process of the backend's half that looks at one part."""

    part: str
    process: subprocess.Popen[str]

    @classmethod
    def start(cls, part: str, *arguments: str) -> _Inspection:
        command = [sys.executable, "-m", "arkor.backend.diagnostics", part, *arguments]
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(  # noqa: S603 - our own module, no shell
            command, cwd="/", env=server_environment(), text=True, **pipes
        )
        return cls(part, process)

    def diagnostics(self, *, required: bool) -> list[Diagnostic]:
        """What it says; where that is not `required`, a problem is only worth a warning."""
        try:
            output, error_output = self.process.communicate(timeout=INSPECTION_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            found = [Diagnostic(self.part, PROBLEM, f"it takes longer than {INSPECTION_TIMEOUT:.0f} s to look at")]
        else:
            found = self._read(output, error_output)
        return found if required else [_downgraded(diagnostic) for diagnostic in found]

    def _read(self, output: str, error_output: str) -> list[Diagnostic]:
        with suppress(ValueError, TypeError, AttributeError):
            return [from_wire(Diagnostic, item) for item in json.loads(output)]
        lines = [line.strip() for line in error_output.splitlines() if line.strip()]
        code = self.process.returncode
        reason = lines[-1][:300] if lines else f"signal {-code}" if code < 0 else f"exit code {code}"
        return [Diagnostic(self.part, PROBLEM, f"it cannot be looked at ({reason})")]


def _downgraded(diagnostic: Diagnostic) -> Diagnostic:
    level = WARNING if diagnostic.level == PROBLEM else diagnostic.level
    return Diagnostic(diagnostic.subject, level, diagnostic.sentence, diagnostic.remedy)


# Telling


def _width() -> int | None:
    """How wide lines may be; None where nobody looks at them."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _format_diagnostic(diagnostic: Diagnostic, width: int | None) -> str:
    """Level, subject and sentence in columns, the remedy below the sentence."""
    indent = " " * (_LEVEL_WIDTH + _SUBJECT_WIDTH + 4)
    level = click.style(diagnostic.level.ljust(_LEVEL_WIDTH), fg=_COLOURS.get(diagnostic.level))
    first, *rest = _wrapped(diagnostic.sentence, width, indent)
    lines = [f"{level}  {diagnostic.subject.ljust(_SUBJECT_WIDTH)}  {first}", *(indent + line for line in rest)]
    if diagnostic.remedy:
        head, *more = _wrapped(diagnostic.remedy, width, f"{indent}→ ")
        lines += [f"{indent}→ {head}", *(f"{indent}  {line}" for line in more)]
    return "\n".join(lines)


def _wrapped(text: str, width: int | None, indent: str) -> list[str]:
    text = " ".join(text.split())
    if width is None:
        return [text]
    room = max(width - len(indent), 30)
    return textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False) or [""]


def _summary(diagnostics: list[Diagnostic]) -> str:
    counts = {level: sum(diagnostic.level == level for diagnostic in diagnostics) for level in (PROBLEM, WARNING)}
    parts = [f"{count} {level}{'' if count == 1 else 's'}" for level, count in counts.items() if count]
    return f"\n{' and '.join(parts)}." if parts else "\nAll is well."


def _report(diagnostics: list[Diagnostic]) -> dict[str, Any]:
    is_healthy = not any(diagnostic.level == PROBLEM for diagnostic in diagnostics)
    return {"version": VERSION, "ok": is_healthy, "findings": to_wire(diagnostics)}


# Mending


def _rebuild(home: Path) -> int:
    """Have the database made anew, unless a backend is at work on it."""
    command = [sys.executable, "-m", "arkor.backend", "--home", str(home), "--rebuild"]
    done = subprocess.run(  # noqa: S603 - our own module, no shell
        command, cwd="/", env=server_environment(), capture_output=True, text=True, check=False
    )
    if done.returncode == DONE:
        say(done.stdout.strip())
        return DONE
    if done.returncode == EXIT_ALREADY_SERVING:
        pid = local_backend.lock_holder(home / "backend.lock")
        stop = f": kill {pid}" if pid else "."
        say(f"A backend is at work on {home}; stop it (its runs go on), then try again{stop}", err=True)
    else:
        say((done.stderr.strip().splitlines() or ["The database could not be made anew."])[-1], err=True)
    return EXIT_FAILED
