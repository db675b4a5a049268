"""Serve runs to other processes and machines, in the foreground."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from arkor.cli.text import say
from arkor.settings import arkor_home


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", default=8230, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--home", type=click.Path(path_type=Path, file_okay=False), help="Where everything is kept [ARKOR_HOME].")
def serve(host: str, port: int, home: Path | None) -> None:
    """Serve runs until Ctrl-C; scripts find the way through ARKOR_CLOUD_API_URL."""
    folder = (home or arkor_home()).expanduser().absolute()
    say(f"Serving {folder} on http://{host}:{port}; Ctrl-C leaves (runs in progress go on)", err=True)
    command = [sys.executable, "-m", "arkor.backend", "--home", str(folder), "--idle", "0"]
    os.execv(sys.executable, [*command, "--host", host, "--port", str(port)])  # noqa: S606 - no shell is meant
