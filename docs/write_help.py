"""Write the `--help` of each command into its block of docs/cli.md: `python docs/write_help.py`.

A block is the fence below `<!-- help: COMMAND -->`. A test fails if a block is out of date.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click

from arkor.cli.main import arkor

PAGE = Path(__file__).parent / "cli.md"
_BLOCK = re.compile(r"(<!-- help: (?P<command>[\w -]+) -->\n```text\n).*?(^```$)", re.MULTILINE | re.DOTALL)


def commands(group: click.Group = arkor, prefix: str = "") -> Iterator[str]:
    """Yield the name of every command, including subcommands: `"jobs"`, …, `"endpoints keys create"`."""
    context = click.Context(group)
    for name in group.list_commands(context):
        yield prefix + name
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix}{name} ")


def help_of(names: str) -> str:
    """Return the `--help` of a command, or of `arkor` itself, for a terminal with 100 columns."""
    width = {"terminal_width": 100, "max_content_width": 100}
    context = click.Context(arkor, info_name="arkor", **width, **arkor.context_settings)
    for name in names.removeprefix("arkor").split():
        command = context.command.get_command(context, name)
        if command is None:
            raise KeyError(name)
        context = click.Context(command, info_name=name, parent=context, **width)
    return context.get_help().rstrip() + "\n"


def with_help(page: str) -> str:
    """Return the text of the page with all help blocks updated. Raise KeyError for a command that does not exist."""
    return _BLOCK.sub(lambda found: found[1] + help_of(found["command"]) + found[3], page)


if __name__ == "__main__":
    PAGE.write_text(with_help(PAGE.read_text("utf-8")), "utf-8")
