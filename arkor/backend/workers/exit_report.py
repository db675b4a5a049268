"""How a worker ended that left no word: the cause, its last lines, and what the person can do about it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arkor.backend.engine.hyperparameters import DEFAULTS

#: What a log says when memory was the cause, in small letters.
_OOM_MARKERS = ("out of memory", "memoryerror", "cannot allocate memory", "bad_alloc", "oom-kill")

#: The worker of another server, or one that ended while there was none.
UNOBSERVED = "unseen by any server"


def wait_for_exit(worker: subprocess.Popen[bytes]) -> int:
    """Wait for the worker, which leads a session of its own, and end what it has started; returns its exit code.

    A process that it has forked would hold the log's lock for it.
    """
    with contextlib.suppress(AttributeError, ChildProcessError, ProcessLookupError, PermissionError):
        os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)  # its number is taken for as long as it is a zombie
        os.killpg(worker.pid, signal.SIGKILL)
    return worker.wait()


def describe_exit(exit_code: int) -> str:
    """The exit code of a process, as `subprocess` has it, in words that go behind "the worker ended"."""
    try:
        signal_number = -exit_code if exit_code < 0 else exit_code - 128  # 128 and more as shells have it
        return f"by the signal {signal.Signals(signal_number).name}"
    except ValueError:
        return f"with exit code {exit_code}"


def crash_message(cause: str, crashes: int, worker_log: Path, config: Mapping[str, Any]) -> str:
    """Why a run is given up after so many `crashes` in a row, the last of which was `cause`."""
    tail = stderr_tail(worker_log)
    repetition = "" if crashes == 1 else f" {crashes} times in a row without getting any further, the last time"
    remedy = oom_remedy(config) if looks_like_oom(cause, tail) else ""
    return f"The worker ended{repetition} {cause}, without saying why. {remedy}{tail}"


def looks_like_oom(cause: str, tail: str) -> bool:
    return "SIGKILL" in cause or any(marker in tail.lower() for marker in _OOM_MARKERS)


def oom_remedy(config: Mapping[str, Any]) -> str:
    """The smallest change of a run's configuration (as on the wire) that lets it do with less memory."""
    batch = config.get("batchSize") or DEFAULTS["batch_size"]
    length = config.get("maxLength") or DEFAULTS["max_length"]
    if batch > 1:
        setting = f"batch_size={batch // 2} (it was {batch})"
    elif length > 128:
        setting = f"max_length={length // 2} (it was {length})"
    else:
        setting = "a smaller model"
    return f"Too little memory is the usual reason; the smallest change that needs less is {setting}. "


def stderr_tail(worker_log: Path, lines: int = 5, max_length: int = 1000) -> str:
    """How the worker's log ends, in a sentence."""
    try:
        with worker_log.open("rb") as file:
            file.seek(max(worker_log.stat().st_size - 8192, 0))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return "It left no log."
    tail = "\n".join(text.strip().splitlines()[-lines:])[-max_length:]
    return f"Its log, {worker_log}, ends with:\n{tail}" if tail else f"Its log, {worker_log}, is empty."
