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
from arkor.cli.errors import FAILED
from arkor.cli.errors import OK as DONE
from arkor.cli.output import say, say_json
from arkor.client.local_backend import ANOTHER_SERVES, environment_of_server
from arkor.protocol.codec import from_wire, to_wire
from arkor.protocol.diagnostics import OK, PROBLEM, WARNING, Finding
from arkor.settings import VERSION, arkor_home

#: Seconds for the libraries that train to be imported, and for ten thousand runs to be looked through.
LOOK_SECONDS = 120.0

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
    findings = []
    for finding in examine(home):
        findings.append(finding)
        if not as_json:
            say(_told(finding, _width()))
    if as_json:
        say_json(_report(findings))
    else:
        say(_summary(findings))
    return FAILED if any(finding.level == PROBLEM for finding in findings) else DONE


# Looking


def examine(home: Path) -> Iterator[Finding]:
    """Everything, from the ground up; what takes long is begun first."""
    way, url = installation.look_at_way()
    here = url is None
    missing = installation.missing_packages()
    device = None if missing else _Inspection.begin("device")
    starter = None if "sqlalchemy" in missing else _Inspection.begin("starter", "--home", str(home))
    yield from _careful("packages", installation.look_at_installation(needed=here))
    if device:
        yield from device.findings(required=here)
    yield from _careful("home", installation.look_at_home(home))
    yield from _careful("space", installation.look_at_space(home))
    if starter:
        yield from starter.findings(required=here)
    yield from _careful("sign-in", installation.look_at_sign_in())
    yield from way
    if url is not None:
        yield from _careful("backend", installation.look_elsewhere(url))
    yield from _careful("process", local_backend.look_here(home))
    if "sqlalchemy" not in missing and home.is_dir():
        serving = ["--serving"] if local_backend.is_serving(home) else []
        yield from _Inspection.begin("store", "--home", str(home), *serving).findings(required=here)
    yield from _careful("network", installation.look_at_network(url))


def _careful(subject: str, looks: Iterable[Finding]) -> Iterator[Finding]:
    """What cannot even be looked at is a finding, too."""
    try:
        yield from looks
    except Exception as error:  # noqa: BLE001 - a doctor does not faint
        yield Finding(subject, PROBLEM, f"it cannot be looked at ({type(error).__name__}: {error})")


@frozen
class _Inspection:
    """A process of the backend's half that looks at one part."""

    part: str
    process: subprocess.Popen[str]

    @classmethod
    def begin(cls, part: str, *arguments: str) -> _Inspection:
        command = [sys.executable, "-m", "arkor.backend.diagnostics", part, *arguments]
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(  # noqa: S603 - our own module, no shell
            command, cwd="/", env=environment_of_server(), text=True, **pipes
        )
        return cls(part, process)

    def findings(self, *, required: bool) -> list[Finding]:
        """What it says; where that is not `required`, a problem is only worth a warning."""
        try:
            said, complaint = self.process.communicate(timeout=LOOK_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            found = [Finding(self.part, PROBLEM, f"it takes longer than {LOOK_SECONDS:.0f} s to look at")]
        else:
            found = self._read(said, complaint)
        return found if required else [_milder(finding) for finding in found]

    def _read(self, said: str, complaint: str) -> list[Finding]:
        with suppress(ValueError, TypeError, AttributeError):
            return [from_wire(Finding, item) for item in json.loads(said)]
        lines = [line.strip() for line in complaint.splitlines() if line.strip()]
        code = self.process.returncode
        reason = lines[-1][:300] if lines else f"signal {-code}" if code < 0 else f"exit code {code}"
        return [Finding(self.part, PROBLEM, f"it cannot be looked at ({reason})")]


def _milder(finding: Finding) -> Finding:
    level = WARNING if finding.level == PROBLEM else finding.level
    return Finding(finding.subject, level, finding.sentence, finding.remedy)


# Telling


def _width() -> int | None:
    """How wide lines may be; None where nobody looks at them."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _told(finding: Finding, width: int | None) -> str:
    """Level, subject and sentence in columns, the remedy below the sentence."""
    indent = " " * (_LEVEL_WIDTH + _SUBJECT_WIDTH + 4)
    level = click.style(finding.level.ljust(_LEVEL_WIDTH), fg=_COLOURS.get(finding.level))
    first, *rest = _wrapped(finding.sentence, width, indent)
    lines = [f"{level}  {finding.subject.ljust(_SUBJECT_WIDTH)}  {first}", *(indent + line for line in rest)]
    if finding.remedy:
        head, *more = _wrapped(finding.remedy, width, f"{indent}→ ")
        lines += [f"{indent}→ {head}", *(f"{indent}  {line}" for line in more)]
    return "\n".join(lines)


def _wrapped(text: str, width: int | None, indent: str) -> list[str]:
    text = " ".join(text.split())
    if width is None:
        return [text]
    room = max(width - len(indent), 30)
    return textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False) or [""]


def _summary(findings: list[Finding]) -> str:
    counts = {level: sum(finding.level == level for finding in findings) for level in (PROBLEM, WARNING)}
    parts = [f"{count} {level}{'' if count == 1 else 's'}" for level, count in counts.items() if count]
    return f"\n{' and '.join(parts)}." if parts else "\nAll is well."


def _report(findings: list[Finding]) -> dict[str, Any]:
    sound = not any(finding.level == PROBLEM for finding in findings)
    return {"version": VERSION, "ok": sound, "findings": to_wire(findings)}


# Mending


def _rebuild(home: Path) -> int:
    """Have the database made anew, unless a backend is at work on it."""
    command = [sys.executable, "-m", "arkor.backend", "--home", str(home), "--rebuild"]
    done = subprocess.run(  # noqa: S603 - our own module, no shell
        command, cwd="/", env=environment_of_server(), capture_output=True, text=True, check=False
    )
    if done.returncode == DONE:
        say(done.stdout.strip())
        return DONE
    if done.returncode == ANOTHER_SERVES:
        pid = local_backend.holder(home / "backend.lock")
        stop = f": kill {pid}" if pid else "."
        say(f"A backend is at work on {home}; stop it (its runs go on), then try again{stop}", err=True)
    else:
        say((done.stderr.strip().splitlines() or ["The database could not be made anew."])[-1], err=True)
    return FAILED
