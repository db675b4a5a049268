"""The command `dev`: Studio, the project's local web page."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import click

from arkor.cli.output import say

_REQUIRED_PACKAGES = ("starlette", "uvicorn", "jinja2", "python_multipart")


@click.command()
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=None,
    help="The port to listen on, on 127.0.0.1 [default: the first free one from 4000 to 4009].",
)
@click.option("--open", "open_it", is_flag=True, help="Open Studio in the browser.")
def dev(port: int | None, open_it: bool) -> None:
    """Serve Studio, the web page of the project in this folder, until Ctrl-C."""
    missing = [name for name in _REQUIRED_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise click.UsageError(f'Studio needs {", ".join(missing)}: pip install "arkor[studio]"')
    from arkor.studio.server import open_browser, serve

    def announce(address: str) -> None:
        say(f"Studio  {address}")
        say("Open this address in a browser on this machine. Ctrl-C stops Studio; runs continue.", err=True)
        if open_it:
            open_browser(address)

    serve(Path.cwd(), port, announce)
