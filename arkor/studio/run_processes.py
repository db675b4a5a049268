"""The processes that Studio starts for a project's trainer: one `arkor start` for each click.

A process writes to a file instead of a pipe and continues when Studio stops. It inherits the lock
on that file, by which a later Studio detects that it is still running.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from attrs import define, field, frozen

from arkor.errors import ArkorError
from arkor.files import is_locked

_RUN = re.compile(rb"^.*: run ([0-9A-Za-z_-]{6,64})$", re.M)
_HEAD_BYTES = 64 * 1024
_MAX_KEPT = 20
_RECENT_SECONDS = 3600.0


@frozen
class RunProcess:
    """A process: its id, its output file, whether it is a dry run, its start (unix seconds)."""

    id: str
    output: Path
    dry_run: bool
    began_at: float

    @property
    def alive(self) -> bool:
        try:
            return is_locked(self.output)
        except OSError:
            return False

    @property
    def job_id(self) -> str | None:
        """The id of its run, once it has printed it."""
        try:
            with self.output.open("rb") as file:
                found = _RUN.search(file.read(_HEAD_BYTES))
        except OSError:
            return None
        return found[1].decode() if found else None


@define(eq=False)
class RunProcesses:
    """The processes of the project in `folder`; thread-safe."""

    folder: Path
    _lock: threading.Lock = field(factory=threading.Lock)
    _started: list[subprocess.Popen[bytes]] = field(factory=list)

    @property
    def _home(self) -> Path:
        return self.folder / ".arkor" / "studio"

    def start(self, click: str, *, dry_run: bool) -> RunProcess:
        """Start the trainer, or return the process that the same `click` has started before."""
        with self._lock:
            self._reap()
            known = self.find(click)
            if known is not None:
                return known
            try:
                self._home.mkdir(parents=True, exist_ok=True)
                process = RunProcess(click, self._home / f"{click}.log", dry_run, time.time())
                self._started.append(_spawn(process, self.folder))
                data = {"dryRun": dry_run, "beganAt": process.began_at}
                (self._home / f"{click}.json").write_text(json.dumps(data))
            except OSError as error:
                raise ArkorError(f"{error.filename} cannot be written ({error.strerror})") from None
            self._prune()
            return process

    def find(self, id_: str) -> RunProcess | None:
        """Return the process with this id, also one that an earlier Studio has started."""
        if not re.fullmatch(r"[0-9a-f]{32}", id_):
            return None
        try:
            data: Mapping[str, Any] = json.loads((self._home / f"{id_}.json").read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return RunProcess(id_, self._home / f"{id_}.log", bool(data.get("dryRun")), float(data.get("beganAt", 0)))

    def latest(self) -> RunProcess | None:
        """Return the latest process; None if it ended long ago."""
        self._reap()
        found = max(self._all(), key=lambda process: process.began_at, default=None)
        return found if found and (time.time() - found.began_at < _RECENT_SECONDS or found.alive) else None

    def _all(self) -> list[RunProcess]:
        found = (self.find(file.stem) for file in self._home.glob("*.json"))
        return [process for process in found if process is not None]

    def _reap(self) -> None:
        """Collect ended child processes, so that they do not remain as zombies."""
        self._started = [process for process in self._started if process.poll() is None]

    def _prune(self) -> None:
        for process in sorted(self._all(), key=lambda process: -process.began_at)[_MAX_KEPT:]:
            if not process.alive:
                for file in (process.output, process.output.with_suffix(".json")):
                    with suppress(OSError):
                        file.unlink()


def _spawn(process: RunProcess, folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "arkor", "start", *(["--dry-run"] if process.dry_run else [])]
    with process.output.open("wb") as output:
        process.output.chmod(0o600)
        fcntl.flock(output, fcntl.LOCK_EX)
        return subprocess.Popen(  # noqa: S603 - our own command
            command,
            cwd=folder,
            env={**os.environ, "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
