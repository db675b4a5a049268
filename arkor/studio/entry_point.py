"""The project's entry point: read in a process of its own, which is killed after a timeout."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from attrs import frozen

#: Seconds to import an entry; importing torch takes a large part of it.
SECONDS = 30.0


@frozen
class EntryPoint:
    """The entry file, and its trainer or the error in it, both as `entry_probe.py` prints them."""

    file: str | None
    trainer: Mapping[str, Any] | None = None
    fault: Mapping[str, Any] | None = None


def probe_entry(folder: Path, seconds: float = SECONDS) -> EntryPoint:
    """Read the entry point of the project in `folder`; errors in it are returned, not raised."""
    process = subprocess.Popen(  # noqa: S603 - our own module
        [sys.executable, "-m", "arkor.studio.entry_probe", str(folder)],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        answer, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return _broken_entry(
            f"The import of the entry point took longer than {seconds:g} s and was stopped. "
            "Move its work into a function that is called only by `if __name__ == '__main__':`."
        )
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # also ends processes that the entry has started
        process.communicate()
    try:
        found = json.loads(answer)
    except ValueError:
        return _broken_entry(f"The entry point ended its Python process (exit status {process.returncode}).")
    return EntryPoint(found["file"], found.get("trainer"), found.get("fault"))


def _broken_entry(sentence: str) -> EntryPoint:
    return EntryPoint(None, fault={"sentence": sentence, "line": None, "place": None, "source": []})
