"""`arkor` and `arkor.backend` as forks of one process that has imported what both need.

Each is a process of its own with its own folder, environment and streams; it saves the time that Python takes to import
the same modules. A test of how Python itself starts (its encoding, its import path) starts one instead.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

PRELOADED = (
    "arkor.callbacks arkor.cli.main arkor.client.streaming.event_stream arkor.display arkor.trainer.trainer "
    "arkor.backend.http.app arkor.backend.http.connection arkor.backend.http.middleware arkor.backend.http.server "
    "arkor.backend.store.run_registry arkor.studio.server multipart.multipart uvicorn.lifespan.on uvicorn.loops.asyncio"
).split()
COMMAND_SECONDS = 60


@cache
def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


class ForkedProcess:
    """`python -m MODULE ARGUMENTS` in a fork, with the interface of `subprocess.Popen`.

    `streams` are the files for standard input, output and error.
    """

    def __init__(
        self,
        module: str,
        arguments: tuple[str, ...],
        folder: Path,
        streams: tuple[Path, Path, Path],
        environment: dict[str, str] | None = None,
    ) -> None:
        settings = (module, arguments, folder, streams, environment or dict(os.environ))
        self._process = _context().Process(target=_run_module, args=settings, daemon=True)
        self._process.start()
        self.pid: int = self._process.pid

    def __enter__(self) -> ForkedProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        code: int | None = self._process.exitcode
        return code

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if (code := self.poll()) is None:
            raise subprocess.TimeoutExpired([], timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _run_module(
    module: str, arguments: tuple[str, ...], folder: Path, streams: tuple[Path, ...], environment: dict[str, str]
) -> None:
    os.setsid()
    for number, file in enumerate(streams):
        opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND if number else os.O_RDONLY)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(number, "w" if number else "r", encoding="utf-8", closefd=False) for number in range(3)
    )
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path[0], sys.argv = str(folder), [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves them out


def fork_backend(log: Path, arguments: tuple[str, ...]) -> ForkedProcess:
    """Start `python -m arkor.backend` with these arguments; its output goes to `log`."""
    return ForkedProcess("arkor.backend", arguments, Path.cwd(), (Path(os.devnull), log, log))


def run_command(arguments: tuple[str, ...], folder: Path, typed: str = "") -> subprocess.CompletedProcess[str]:
    """Run `arkor` with these arguments in that folder to its end; `typed` is its standard input."""
    with TemporaryDirectory() as scratch:
        streams = Path(scratch, "in"), Path(scratch, "out"), Path(scratch, "err")
        streams[0].write_text(typed, "utf-8")
        process = ForkedProcess("arkor", arguments, folder, streams)
        try:
            code = process.wait(COMMAND_SECONDS)
        finally:
            process.kill()
        output, errors = (stream.read_text("utf-8").replace("\r\n", "\n") for stream in streams[1:])
        return subprocess.CompletedProcess(arguments, code, output, errors)
