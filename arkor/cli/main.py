"""The command `arkor` and its subcommands."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any, NamedTuple

import click

from arkor.cli.errors import handle_broken_pipe, run
from arkor.settings import VERSION


class Entry(NamedTuple):
    """Where a command is defined, as `module:function` below `arkor.cli`, and its first sentence."""

    target: str
    summary: str


#: The commands in the order of the help.
COMMANDS = {
    "init": Entry("init:init", "Write a project to DIR (default: here); it can be run offline."),
    "check": Entry("check:check", "Check a run without starting it."),
    "start": Entry("project:start", "Run a project's trainer and wait for its end."),
    "dev": Entry("servers:dev", "Serve Studio, the web page of the project in this folder, until Ctrl-C."),
    "jobs": Entry("runs:jobs", "List the runs, newest first."),
    "logs": Entry("runs:logs", "Print the log of a run from its start."),
    "cancel": Entry("runs:cancel", "Cancel a run; what it has saved is kept."),
    "chat": Entry("chat:chat", "Chat with a run's adapter (JOB), one of its checkpoints (JOB@STEP), or a base model."),
    "export-run": Entry("archive:export_run", "Write a finished run to a zip file."),
    "import": Entry("archive:import_run", "Import a run from another machine."),
    "endpoints": Entry("endpoints:endpoints", "Serve models with an OpenAI-compatible API."),
    "serve": Entry("servers:serve", "Run a backend in the foreground, also for other machines."),
    "login": Entry("login:login", "Sign in to a backend; in a terminal, prompts for the method if no option is given."),
    "logout": Entry("login:logout", "Remove the sign-in."),
    "whoami": Entry("whoami:whoami", "Show who you are, your organisations, which backend is used, and why."),
    "doctor": Entry("doctor.doctor:doctor", "Diagnose problems of this installation and show how to fix them."),
    "docs": Entry("docs:docs", "Print the folder of the documentation."),
}


class Commands(click.Group):
    """A group that imports a command when it is used, and unlike click's accepts a closed pipe."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            return handle_broken_pipe()

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        if cmd_name not in COMMANDS:
            return None
        module, _, function = COMMANDS[cmd_name].target.partition(":")
        command: click.Command = getattr(import_module(f"arkor.cli.{module}"), function)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's
        """Write the summaries without importing the commands."""
        limit = formatter.width - 6 - max(map(len, COMMANDS))
        rows = [
            (name, click.Command(name, help=entry.summary).get_short_help_str(limit))
            for name, entry in COMMANDS.items()
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, message="arkor %(version)s")
def arkor() -> None:
    """Fine-tune open-weight language models from plain, blocking Python."""


def main() -> None:
    """Run the command line and exit with one of the codes in `errors.py`."""
    sys.exit(run(lambda: arkor(prog_name="arkor", standalone_mode=False)))


if __name__ == "__main__":
    main()
