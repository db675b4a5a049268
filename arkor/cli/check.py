"""check: a look at a project's run before it is started."""

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

#: What an encoding without them shows instead of the signs of a report.
_ASCII_FALLBACKS = str.maketrans(
    {"⟦": "[[", "⟧": "]]", "↵": "\\n", "█": "#", "│": "|", "≤": "<=", "…": "...", "�": "?"}
)


@click.command()
@click.argument("entry", required=False, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print what was found as a JSON object; the rest goes to stderr.")
def check(entry: Path | None, *, as_json: bool) -> int:
    """Look at the run of ENTRY without starting it (a file or a project's folder; default: here).

    Shows faults of the data by line, the first rows as the model will see them, lengths, duplicates, and an estimate
    of time and memory. It happens where the run would, and leaves with 1 if the data keep it from being trained.
    """
    file = find_entry(entry)
    with redirect_stdout(sys.stderr) if as_json else nullcontext():  # what the entry prints is none of the document
        trainer = project_code(file, lambda: inspect_entry(file))
        found = trainer.check()
    if as_json:
        say_json({"ok": found.ok, **to_wire(found)})
    elif _in_colour():
        say(check_report.render_text(found, _underlined, _coloured))
    else:
        say(_in_output_encoding(check_report.render_text(found)))
    return EXIT_OK if found.ok else EXIT_FAILED


def _in_colour() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _underlined(text: str, counts: bool) -> str:
    return click.style(text, fg="green", underline=True) if counts else text


def _coloured(text: str, kind: str) -> str:
    return click.style(text, fg=_COLOURS.get(kind), bold=kind != "problem")


def _in_output_encoding(text: str) -> str:
    """The report in the letters that the output has."""
    encoding = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "")
    return text if encoding == "utf8" else replace_unencodable(text.translate(_ASCII_FALLBACKS), sys.stdout)
