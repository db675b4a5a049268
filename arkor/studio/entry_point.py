"""The project's entry point as it is now: examined in a process of its own, which is ended when it takes too long."""

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

#: Seconds that an entry may take to be imported; one that loads torch needs a good part of it.
SECONDS = 30.0


@frozen
class EntryPoint:
    """What was found: its file, and either the trainer or what is wrong. Both are as `entry_probe.py` writes them."""

    file: str | None
    trainer: Mapping[str, Any] | None = None
    fault: Mapping[str, Any] | None = None


def probe_entry(folder: Path, seconds: float = SECONDS) -> EntryPoint:
    """Examine the project in `folder`; never raises for what the project does."""
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
            f"The entry point was not done after {seconds:g} s, and was ended. Is there work outside of `main`?"
        )
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and whatever it has started
        process.communicate()
    try:
        found = json.loads(answer)
    except ValueError:
        return _broken_entry(f"The entry point ended Python itself (exit status {process.returncode}).")
    return EntryPoint(found["file"], found.get("trainer"), found.get("fault"))


def _broken_entry(sentence: str) -> EntryPoint:
    return EntryPoint(None, fault={"sentence": sentence, "line": None, "place": None, "source": []})
