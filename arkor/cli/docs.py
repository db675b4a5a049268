"""The command `docs`: where the documentation is on this machine."""

from __future__ import annotations

from pathlib import Path

import click

import arkor
from arkor.cli.output import say

_PACKAGE = Path(arkor.__file__).parent


@click.command()
def docs() -> None:
    """Print the folder of the documentation.

    It contains Markdown files; `llms.txt` lists them.
    """
    # A wheel contains the pages as `arkor/docs`; an editable install has them next to the package.
    for folder in (_PACKAGE / "docs", _PACKAGE.parent / "docs"):
        if (folder / "index.md").is_file():
            say(str(folder))
            return
    raise click.UsageError(f"{_PACKAGE / 'docs'} is missing; reinstall arkor: pip install --force-reinstall arkor")
