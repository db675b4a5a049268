"""The command `arkor` and its subcommands."""

from __future__ import annotations

import sys
from typing import Any

import click

from arkor.cli.archive import export_run, import_run
from arkor.cli.chat import chat
from arkor.cli.check import check
from arkor.cli.docs import docs
from arkor.cli.doctor.doctor import doctor
from arkor.cli.endpoints import endpoints
from arkor.cli.errors import handle_broken_pipe, run
from arkor.cli.init import init
from arkor.cli.login import login, logout
from arkor.cli.project import start
from arkor.cli.runs import cancel, jobs, logs
from arkor.cli.servers import dev, serve
from arkor.cli.whoami import whoami
from arkor.settings import VERSION


class Commands(click.Group):
    """A group that keeps the order of its commands and, unlike click's, accepts a closed pipe."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            return handle_broken_pipe()

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(self.commands)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, message="arkor %(version)s")
def arkor() -> None:
    """Fine-tune open-weight language models from plain, blocking Python."""


for command in (
    *(init, check, start, dev, jobs, logs, cancel, chat, export_run, import_run, endpoints),
    *(serve, login, logout, whoami, doctor, docs),
):
    arkor.add_command(command)


def main() -> None:
    """Run the command line and exit with one of the codes in `errors.py`."""
    sys.exit(run(lambda: arkor(prog_name="arkor", standalone_mode=False)))


if __name__ == "__main__":
    main()
