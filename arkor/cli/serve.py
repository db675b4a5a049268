"""Serve runs to other processes and machines, in the foreground."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from arkor.settings import arkor_home


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", default=8230, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--home", type=click.Path(path_type=Path, file_okay=False), help="Where everything is kept [ARKOR_HOME].")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Holds the token that callers must bring [ARKOR_SERVE_TOKEN].",
)
def serve(host: str, port: int, home: Path | None, token_file: Path | None) -> None:
    """Serve runs until Ctrl-C; scripts find the way through ARKOR_CLOUD_API_URL.

    On any address that other machines can reach, callers must bring a token of your choice; there, `arkor login --token
    --url URL` asks for it.
    """
    folder = (home or arkor_home()).expanduser().absolute()
    command = [sys.executable, "-m", "arkor.backend", "--home", str(folder), "--idle", "0", "--greet"]
    token = ["--token-file", str(token_file.absolute())] if token_file else []
    os.execv(sys.executable, [*command, "--host", host, "--port", str(port), *token])  # noqa: S606 - no shell is meant
