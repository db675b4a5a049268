"""Commands by the hundred: a process that has imported what `arkor` needs forks one for each call.

    python -m tests.fakes.cli_forkserver FILE_NUMBER

Each is a process of its own, with the folder, the environment, the input and the outputs that it is given; all that it
is spared is the quarter of a second in which Python imports the same again. Where it matters how Python itself starts
(in which encoding it prints, where it finds what it imports), a test starts one.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import IO, Any

#: What the commands import, some of it when they are called.
PRELOADED = (
    "arkor.cli.main",
    "arkor.callbacks",
    "arkor.client.streaming.event_stream",
    "arkor.display",
    "arkor.trainer.project",
    "arkor.trainer.trainer",
)


#: As long as a command may take.
SECONDS = 60


class CliForkserver:
    """The process, from the outside."""

    def __init__(self) -> None:
        self._line, theirs = socket.socketpair()
        command = [sys.executable, "-m", "tests.fakes.cli_forkserver", str(theirs.fileno())]
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()

    def __enter__(self) -> CliForkserver:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._line.close()
        self._process.wait()

    def run(self, arguments: tuple[str, ...], folder: Path, typed: str = "") -> subprocess.CompletedProcess[str]:
        """`arkor` with these arguments, in that folder and in the environment of this moment, to its end."""
        call = {"arguments": arguments, "folder": str(folder), "environment": dict(os.environ)}
        with (
            TemporaryFile() as request_file,
            TemporaryFile() as keys,
            TemporaryFile() as output,
            TemporaryFile() as errors,
        ):
            write(request_file, json.dumps(call))
            write(keys, typed)
            socket.send_fds(self._line, [b"."], [file.fileno() for file in (request_file, keys, output, errors)])
            code = int.from_bytes(self._line.recv(4), "big", signed=True)
            return subprocess.CompletedProcess(arguments, code, read(output), read(errors))


def write(file: IO[bytes], text: str) -> None:
    file.write(text.encode())
    file.seek(0)


def read(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode().replace("\r\n", "\n")


def next_request(line: socket.socket) -> dict[str, Any] | None:
    """Fork for each call; returns it in the child, and None where there are no more."""
    while files := socket.recv_fds(line, 1, 4)[1]:
        if (child := os.fork()) == 0:
            line.close()
            request_file, *streams = files
            for number, file in enumerate(streams):
                os.dup2(file, number)
            with os.fdopen(request_file, "rb") as call:
                return dict(json.load(call))
        for file in files:
            os.close(file)
        line.sendall(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]).to_bytes(4, "big", signed=True))
    return None


def run_child(call: dict[str, Any]) -> None:
    """A child's life: from here on it is `python -m arkor`, and ends as that ends."""
    signal.alarm(SECONDS)
    os.environ.clear()
    os.environ.update(call["environment"])
    os.chdir(call["folder"])
    sys.path[0], sys.argv = call["folder"], ["arkor", *call["arguments"]]
    sys.stdin = os.fdopen(0, "r", encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
    runpy.run_module("arkor", run_name="__main__", alter_sys=True)


def main() -> None:
    for room in PRELOADED:
        __import__(room)
    gc.freeze()  # or a collection in a child would copy all of it
    with socket.socket(fileno=int(sys.argv[1])) as line:
        call = next_request(line)
    if call is not None:
        run_child(call)


if __name__ == "__main__":
    main()
