"""Backends by the hundred: a process that has imported what a server needs forks one for each test.

Each is a process of its own, with the folder, the environment and the log that it is given; all that it is spared is
the second in which Python imports the same again. Its command line is not its own, so it is known by its id alone.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

#: What `python -m arkor.backend` imports, some of it when it begins to serve.
PRELOADED = [
    "arkor.backend.http.app",
    "arkor.backend.http.connection",
    "arkor.backend.http.middleware",
    "arkor.backend.http.server",
    "arkor.backend.store.run_registry",
    "uvicorn.lifespan.on",
    "uvicorn.loops.asyncio",
]


class ForkedProcess:
    """A forked process, as `subprocess.Popen` would show it."""

    def __init__(self, live: Callable[..., None], *arguments: Any) -> None:
        self._process = _forkserver().Process(target=live, args=arguments, daemon=True)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def __enter__(self) -> ForkedProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.wait()

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if (code := self._process.exitcode) is None:
            raise subprocess.TimeoutExpired([], timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@cache
def _forkserver() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def fork_backend(log: Path, arguments: tuple[str, ...]) -> ForkedProcess:
    """`python -m arkor.backend` with these arguments, in the environment of this moment."""
    return ForkedProcess(_serve, log, arguments, dict(os.environ))


def _serve(log: Path, arguments: tuple[str, ...], environment: dict[str, str]) -> None:
    """A child's life: from here on it is `python -m arkor.backend`, and ends as that ends."""
    os.setsid()
    for number, opened in ((0, os.open(os.devnull, os.O_RDONLY)), (1, os.open(log, os.O_WRONLY | os.O_CREAT))):
        os.dup2(opened, number)
    os.dup2(1, 2)
    sys.stdout = sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", closefd=False)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["arkor.backend", *arguments]
    runpy.run_module("arkor.backend", run_name="__main__", alter_sys=True)
