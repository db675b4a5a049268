"""The backend's process: `python -m arkor.backend --home DIR [--rebuild]`.

The operator's token comes from `ARKOR_SERVE_TOKEN` or `--token-file` and never from the command
line, which every process can read. Exit codes: 0 stopped, 2 could not start (the reason is on
stderr), 3 another server serves this home.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import threading
from pathlib import Path
from typing import NoReturn

try:
    from arkor.backend.http.connection import raise_open_file_limit
    from arkor.backend.http.server import NEW_TOKEN_COMMAND, serve
    from arkor.backend.store.home import rebuild
    from arkor.backend.store.schema import StartupError
except ModuleNotFoundError as missing:
    if (missing.name or "").startswith("arkor"):
        raise
    print(f"The backend needs {missing.name}: pip install 'arkor[local]'", file=sys.stderr)  # noqa: T201
    sys.exit(2)

from arkor.errors import InvalidConfig
from arkor.settings import arkor_home, check_limits

#: The minimum length of the operator's token.
MIN_TOKEN_LENGTH = 16


def read_operator_token(file: Path | None) -> str | None:
    """Return and unset the operator's token. Raise `StartupError`."""
    token, source = os.environ.pop("ARKOR_SERVE_TOKEN", "").strip(), "ARKOR_SERVE_TOKEN"  # children must not get it
    if file is not None:
        source = str(file)
        try:
            token = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
            raise StartupError(f"The token file {file} cannot be read: {reason}.") from error
    elif not token:
        return None
    if len(token) < MIN_TOKEN_LENGTH or not all("!" <= char <= "~" for char in token):
        problem = f"must have at least {MIN_TOKEN_LENGTH} letters, digits and punctuation marks, and no spaces"
        raise StartupError(f"The token in {source} {problem}.", remedy=f"To make one: {NEW_TOKEN_COMMAND}")
    return token


def main() -> int:
    """Parse the command line and serve; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m arkor.backend", description="Serve runs on this machine.")
    parser.add_argument("--home", type=Path, default=None, help="the backend's folder (default: ARKOR_HOME)")
    parser.add_argument("--engine", choices=["trl", "scripted"], default="trl", help="the engine that trains")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="default: a free port")
    parser.add_argument("--idle", type=float, default=900.0, help="stop after this many idle seconds; 0: never")
    parser.add_argument("--token-file", type=Path, help="the operator's token (default: ARKOR_SERVE_TOKEN)")
    parser.add_argument("--greet", action="store_true", help="print the address on stderr")
    parser.add_argument("--rebuild", action="store_true", help="rebuild the database from the run folders, and exit")
    options = parser.parse_args()
    os.umask(0o077)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        check_limits()
        home = (options.home or arkor_home()).absolute()
        if options.rebuild:
            print(rebuild(home))  # noqa: T201
            return 0
        token = read_operator_token(options.token_file)
        raise_open_file_limit()
        serve(
            home,
            options.engine,
            host=options.host,
            port=options.port,
            idle=options.idle,
            operator_token=token,
            greet=options.greet,
        )
    except (StartupError, InvalidConfig) as error:
        print(error, file=sys.stderr)  # noqa: T201
        return error.exit_code if isinstance(error, StartupError) else 2
    return 0


def exit_process(code: int) -> NoReturn:
    """End the process without the interpreter's slow shutdown: join threads, flush streams."""
    for thread in threading.enumerate():
        if not thread.daemon and thread is not threading.current_thread():
            thread.join()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # its reader is gone, or it never existed
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    exit_process(main())
