"""Child processes that exchange JSON objects with the server, one a line, over stdin and stdout.

`start_child` is the server's side, `ParentConnection` the child's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import threading
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from arkor.protocol.codec import dumps

#: The longest line that the server reads, in bytes.
LINE_LIMIT = 16 * 1024 * 1024


async def start_child(module: str, home: Path, engine: str, log: IO[bytes]) -> Process:
    """Start `python -m module` in a session of its own, with its stderr in `log`."""
    command = [sys.executable, "-u", "-m", module, "--home", str(home), "--engine", engine]
    return await asyncio.create_subprocess_exec(
        *command, stdin=PIPE, stdout=PIPE, stderr=log, limit=LINE_LIMIT, start_new_session=True
    )


def encode_line(message: Mapping[str, Any]) -> bytes:
    return dumps(message).encode() + b"\n"


def describe_exit(exit_code: int) -> str:
    """Describe an exit code of `subprocess`, as a continuation of "the worker ended"."""
    try:
        signal_number = -exit_code if exit_code < 0 else exit_code - 128  # shells report 128 + signal
        return f"by the signal {signal.Signals(signal_number).name}"
    except ValueError:
        return f"with exit code {exit_code}"


def parse_options(module: str, description: str) -> argparse.Namespace:
    """Parse the command line that `start_child` writes: `home` and `engine`."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--engine", choices=["trl", "scripted"], required=True)
    return parser.parse_args()


class ParentConnection:
    """The child's side. Takes over stdout; whatever else the process prints goes to stderr."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "wb", buffering=0)
        os.dup2(2, 1)

    def send(self, message: Mapping[str, Any]) -> None:
        self._out.write(encode_line(message))

    def receive(self) -> dict[str, Any]:
        """Wait for the next JSON object."""
        message: dict[str, Any] = json.loads(sys.stdin.buffer.readline())
        return message

    def listen(self, handle: Callable[[dict[str, Any]], None]) -> None:
        """Pass further objects to `handle`, in a thread; exit when stdin ends."""

        def read() -> None:
            for line in sys.stdin.buffer:
                handle(json.loads(line))
            os._exit(0)

        threading.Thread(target=read, daemon=True).start()
