"""The table of commands, from which `arkor --help` is printed without importing them."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest

from arkor.cli.main import COMMANDS, arkor


@pytest.mark.parametrize("name", COMMANDS)
def test_a_summary_is_the_first_sentence_of_the_command(name: str) -> None:
    command = arkor.get_command(click.Context(arkor), name)
    assert command is not None
    assert command.name == name
    assert click.Command(name, help=COMMANDS[name].summary).get_short_help_str(1000) == command.get_short_help_str(1000)


def test_the_help_imports_no_command() -> None:
    code = """
import sys
from arkor.cli.main import arkor
arkor(["--help"], standalone_mode=False)
print([name for name in sys.modules if name.startswith(("arkor.client", "arkor.cli.runs", "requests"))])
"""
    printed = subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()
    assert printed[-1] == "[]"
    assert [line.split()[0] for line in printed[printed.index("Commands:") + 1 : -1]] == list(COMMANDS)
