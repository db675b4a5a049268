"""The command `check`: validate a project's run before it is started."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from arkor.cli.errors import EXIT_FAILED, EXIT_OK
from arkor.cli.output import may_colour, only_json_on_stdout, prints_utf8, say, say_json
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
    with only_json_on_stdout(as_json):
        trainer = project_code(file, lambda: inspect_entry(file))
        found = trainer.check()
    if as_json:
        say_json({"ok": found.ok, **to_wire(found)})
    elif sys.stdout.isatty() and may_colour():
        say(check_report.render_text(found, _mark, _style))
    elif prints_utf8():
        say(check_report.render_text(found))
    else:
        say(replace_unencodable(check_report.render_text(found).translate(_ASCII_FALLBACKS), sys.stdout))
    return EXIT_OK if found.ok else EXIT_FAILED


def _mark(text: str, counts: bool) -> str:
    return click.style(text, fg="green", underline=True) if counts else text


def _style(text: str, kind: str) -> str:
    return click.style(text, fg=_COLOURS.get(kind), bold=kind != "problem")
