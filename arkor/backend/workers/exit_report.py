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
_MEMORY_WORDS = ("out of memory", "memoryerror", "cannot allocate memory", "bad_alloc", "oom-kill")

#: The worker of another server, or one that ended while there was none.
UNSEEN = "unseen by any server"


def end_of(worker: subprocess.Popen[bytes]) -> int:
    """Wait for the worker, which leads a session of its own, and end what it has started; returns its exit code.

    A process that it has forked would hold the log's lock for it.
    """
    with contextlib.suppress(AttributeError, ChildProcessError, ProcessLookupError, PermissionError):
        os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)  # its number is taken for as long as it is a zombie
        os.killpg(worker.pid, signal.SIGKILL)
    return worker.wait()


def cause(exit_code: int) -> str:
    """The exit code of a process, as `subprocess` has it, in words that go behind "the worker ended"."""
    try:
        number = -exit_code if exit_code < 0 else exit_code - 128  # 128 and more as shells have it
        return f"by the signal {signal.Signals(number).name}"
    except ValueError:
        return f"with exit code {exit_code}"


def obituary(how: str, deaths: int, worker_log: Path, config: Mapping[str, Any]) -> str:
    """Why a run is given up after so many `deaths` in a row, the last of which was `how`."""
    words = last_words(worker_log)
    times = "" if deaths == 1 else f" {deaths} times in a row without getting any further, the last time"
    advice = memory_advice(config) if _smells_of_memory(how, words) else ""
    return f"The worker ended{times} {how}, without saying why. {advice}{words}"


def _smells_of_memory(how: str, words: str) -> bool:
    return "SIGKILL" in how or any(word in words.lower() for word in _MEMORY_WORDS)


def memory_advice(config: Mapping[str, Any]) -> str:
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


def last_words(worker_log: Path, lines: int = 5, longest: int = 1000) -> str:
    """How the worker's log ends, in a sentence."""
    try:
        with worker_log.open("rb") as file:
            file.seek(max(worker_log.stat().st_size - 8192, 0))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return "It left no log."
    words = "\n".join(text.strip().splitlines()[-lines:])[-longest:]
    return f"Its log, {worker_log}, ends with:\n{words}" if words else f"Its log, {worker_log}, is empty."
