"""The command `doctor`: run every check of an installation and print the results."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import click
from attrs import evolve

from arkor.cli.doctor import installation, local_backend
from arkor.cli.errors import EXIT_FAILED, EXIT_OK
from arkor.cli.output import say, say_json
from arkor.client.local_backend import EXIT_ALREADY_SERVING, missing_packages, server_environment
from arkor.protocol.codec import from_wire, to_wire
from arkor.protocol.diagnostics import OK, PROBLEM, WARNING, Diagnostic, problem
from arkor.settings import VERSION, arkor_home

#: Seconds for importing the training libraries, or for reading ten thousand runs.
INSPECTION_TIMEOUT = 120.0

_COLOURS = {OK: "green", WARNING: "yellow", PROBLEM: "red"}
_INDENT = " " * 22  # of the columns for level and subject


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object instead of text.")
@click.option("--rebuild", is_flag=True, help="Rebuild the database from the runs' folders; the old one is kept.")
def doctor(as_json: bool, rebuild: bool) -> int:
    """Diagnose problems of this installation and show how to fix them.

    Starts, downloads and changes nothing. Exits with 1 if there is a problem.
    """
    home = arkor_home()
    if rebuild:
        return _rebuild(home)
    found = []
    for diagnostic in diagnose(home):
        found.append(diagnostic)
        if not as_json:
            say(_format(diagnostic))
    counts = {level: sum(diagnostic.level == level for diagnostic in found) for level in (PROBLEM, WARNING)}
    if as_json:
        say_json({"version": VERSION, "ok": not counts[PROBLEM], "findings": to_wire(found)})
    else:
        parts = [f"{count} {level}{'' if count == 1 else 's'}" for level, count in counts.items() if count]
        say(f"\n{' and '.join(parts) or 'No problems found'}.")
    return EXIT_FAILED if counts[PROBLEM] else EXIT_OK


def diagnose(home: Path) -> Iterator[Diagnostic]:
    """Run every check. The slow ones run in the background while the quick ones are yielded."""
    backend_choice, url = installation.check_backend_choice()
    missing = missing_packages()
    serving = [] if local_backend.lock_holder(home / "backend.lock") is None else ["--serving"]
    with ThreadPoolExecutor() as pool:
        device = None if missing else pool.submit(_inspect, "device", required=url is None)
        can_inspect = "sqlalchemy" not in missing
        arguments = ("home", "--home", str(home), *serving)
        inspection = pool.submit(_inspect, *arguments, required=url is None) if can_inspect else None
        checks: list[tuple[str, Iterable[Diagnostic]]] = [
            ("packages", installation.check_installation(needed=url is None)),
            ("device", _results(device)),
            ("home", installation.check_home(home)),
            ("space", installation.check_space(home)),
            ("sign-in", installation.check_sign_in()),
            ("backend", backend_choice),
            ("backend", installation.check_remote_backend(url) if url else ()),
            ("process", local_backend.check_local_backend(home)),
            ("home", _results(inspection)),
            ("network", installation.check_network(url)),
        ]
        for subject, diagnostics in checks:
            try:
                yield from diagnostics
            except Exception as error:  # noqa: BLE001, PERF203 - the other checks must still run
                yield problem(subject, f"this check failed ({type(error).__name__}: {error})")


def _results(inspection: Future[list[Diagnostic]] | None) -> Iterator[Diagnostic]:
    if inspection:
        yield from inspection.result()


def _inspect(part: str, *arguments: str, required: bool) -> list[Diagnostic]:
    """Run a part of `arkor.backend.diagnostics`; unless `required`, problems become warnings."""
    try:
        done = _run_module("arkor.backend.diagnostics", part, *arguments, timeout=INSPECTION_TIMEOUT)
        found = [from_wire(Diagnostic, item) for item in json.loads(done.stdout)]
    except subprocess.TimeoutExpired:
        found = [problem(part, f"this check took longer than {INSPECTION_TIMEOUT:.0f} s")]
    except (ValueError, TypeError, AttributeError):  # it has crashed
        lines = done.stderr.strip().splitlines()
        end = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        found = [problem(part, f"this check failed ({lines[-1].strip()[:300] if lines else end})")]
    if required:
        return found
    return [evolve(item, level=WARNING) if item.level == PROBLEM else item for item in found]


def _run_module(module: str, *arguments: str, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - our own module, no shell
        [sys.executable, "-m", module, *arguments],
        cwd="/",
        env=server_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def _format(diagnostic: Diagnostic) -> str:
    """Format level, subject and sentence in columns, and the remedy under the sentence."""
    level = click.style(diagnostic.level.ljust(7), fg=_COLOURS.get(diagnostic.level))
    text = f"{level}  {diagnostic.subject:11}  {_wrap(diagnostic.sentence)}"
    return text + (f"\n{_INDENT}→ {_wrap(diagnostic.remedy, '  ')}" if diagnostic.remedy else "")


def _wrap(text: str, hanging: str = "") -> str:
    """Wrap a text to the terminal; do not wrap it if the output is not one."""
    text, indent = " ".join(text.split()), _INDENT + hanging
    if not sys.stdout.isatty():
        return text
    width = max(shutil.get_terminal_size().columns - len(indent), 30)
    return f"\n{indent}".join(textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False))


def _rebuild(home: Path) -> int:
    """Rebuild the database unless a backend is serving it."""
    done = _run_module("arkor.backend", "--home", str(home), "--rebuild")
    if done.returncode == EXIT_OK:
        say(done.stdout.strip())
        return EXIT_OK
    if done.returncode == EXIT_ALREADY_SERVING:
        pid = local_backend.lock_holder(home / "backend.lock")
        stop = f": kill {pid}" if pid else "."
        say(f"A backend is serving {home}. Stop it (its runs continue), then try again{stop}", err=True)
    else:
        say((done.stderr.strip().splitlines() or ["The database could not be rebuilt."])[-1], err=True)
    return EXIT_FAILED
