"""Writes each command's `--help` into its block of docs/cli.md: `python docs/write_help.py`.

A block is the fence below `<!-- help: COMMAND -->`; the tests fail while one of them is out of date.
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
    """Every command below `arkor`, those of groups too: `"jobs"`, …, `"endpoints keys create"`."""
    for name, command in group.commands.items():
        yield prefix + name
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix}{name} ")


def help_of(names: str) -> str:
    """What `--help` of a command (or of `arkor` itself) prints in a terminal of 100 columns."""
    width = {"terminal_width": 100, "max_content_width": 100}
    context = click.Context(arkor, info_name="arkor", **width, **arkor.context_settings)
    for name in names.removeprefix("arkor").split():
        context = click.Context(context.command.commands[name], info_name=name, parent=context, **width)
    return context.get_help().rstrip() + "\n"


def with_help(page: str) -> str:
    """The text of the page with every help block as it ought to be. Raises KeyError for a command that is gone."""
    return _BLOCK.sub(lambda found: found[1] + help_of(found["command"]) + found[3], page)


if __name__ == "__main__":
    PAGE.write_text(with_help(PAGE.read_text("utf-8")), "utf-8")
