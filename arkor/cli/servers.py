"""The commands `dev`, Studio, and `serve`, a backend for other processes and machines."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from arkor.cli.output import say
from arkor.client.local_backend import missing_packages, require_posix
from arkor.settings import arkor_home

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
    require_posix("Studio")
    if missing := missing_packages(_REQUIRED_PACKAGES):
        raise click.UsageError(f'Studio needs {", ".join(missing)}: pip install "arkor[studio]"')
    from arkor.studio.server import open_browser, serve

    def announce(address: str) -> None:
        say(f"Studio  {address}")
        say("Open this address in a browser on this machine. Ctrl-C stops Studio; runs continue.", err=True)
        if open_it:
            open_browser(address)

    serve(Path.cwd(), port, announce)


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", default=8230, show_default=True, type=click.IntRange(0, 65535), help="0 chooses a free port.")
@click.option("--home", type=click.Path(path_type=Path, file_okay=False), help="The data folder [ARKOR_HOME].")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A file with the token that clients must send [ARKOR_SERVE_TOKEN].",
)
def serve(host: str, port: int, home: Path | None, token_file: Path | None) -> None:
    """Run a backend in the foreground, also for other machines.

    Scripts find it with ARKOR_CLOUD_API_URL. Ctrl-C stops it.

    An address that other machines can reach requires a token, which you choose. On those machines,
    sign in with `arkor login --token --url URL`.
    """
    require_posix("a backend")
    folder = (home or arkor_home()).expanduser().absolute()
    command = [sys.executable, "-m", "arkor.backend", "--home", str(folder), "--idle", "0", "--greet"]
    token = ["--token-file", str(token_file.absolute())] if token_file else []
    os.execv(sys.executable, [*command, "--host", host, "--port", str(port), *token])  # noqa: S606
