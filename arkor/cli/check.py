"""The command `check`: validate a project's run before it is started."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path

import click

from arkor.cli.errors import EXIT_FAILED, EXIT_OK
from arkor.cli.output import say, say_json
from arkor.cli.project import project_code
from arkor.formatting import replace_unencodable
from arkor.protocol.codec import to_wire
from arkor.results import check_report
from arkor.trainer.project import find_entry, inspect_entry

_COLOURS = {"problem": "red", "good": "green"}

#: Replacements for the symbols of a report where the output is not UTF-8.
_ASCII_FALLBACKS = str.maketrans(
    {"⟦": "[[", "⟧": "]]", "↵": "\\n", "█": "#", "│": "|", "≤": "<=", "…": "...", "�": "?"}
)


@click.command()
@click.argument("entry", required=False, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the report as a JSON object, everything else to stderr.")
def check(entry: Path | None, *, as_json: bool) -> int:
    """Check a run without starting it.

    ENTRY is a file or a project's folder (default: here).

    Shows errors in the data by line, the first rows as the model sees them, lengths, duplicates,
    and an estimate of time and memory. The check runs where the run would. Exits with 1 if the data
    cannot be trained on.
    """
    file = find_entry(entry)
    # Standard output is the JSON document alone: what the entry prints goes to stderr.
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        trainer = project_code(file, lambda: inspect_entry(file))
        found = trainer.check()
    encoding = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "")
    if as_json:
        say_json({"ok": found.ok, **to_wire(found)})
    elif sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb":
        say(check_report.render_text(found, _underline, _style))
    elif encoding == "utf8":
        say(check_report.render_text(found))
    else:
        say(replace_unencodable(check_report.render_text(found).translate(_ASCII_FALLBACKS), sys.stdout))
    return EXIT_OK if found.ok else EXIT_FAILED


def _underline(text: str, counts: bool) -> str:
    return click.style(text, fg="green", underline=True) if counts else text


def _style(text: str, kind: str) -> str:
    return click.style(text, fg=_COLOURS.get(kind), bold=kind != "problem")
