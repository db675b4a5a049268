"""The processes that Studio starts to run a project's trainer: `arkor start`, once for each click.

Such a process belongs to nobody here: it writes into a file and not into a pipe, and goes on when Studio stops. It is
known to live by the lock on that file, which it was born with; so a later Studio finds it, too.
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

_RUN = re.compile(rb"^.*: run ([0-9A-Za-z_-]{6,64})$", re.M)
_HEAD_BYTES = 64 * 1024
_MAX_KEPT = 20
_RECENT_SECONDS = 3600.0


@frozen
class RunProcess:
    """One click: its id, where the output goes, whether it is a dry run, when it was (unix seconds)."""

    id: str
    output: Path
    dry_run: bool
    began_at: float

    @property
    def alive(self) -> bool:
        """Whether the process goes on."""
        try:
            file = os.open(self.output, os.O_RDONLY)
        except OSError:
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(file)
        return False

    @property
    def job_id(self) -> str | None:
        """The run that it has submitted, as soon as it has said so."""
        try:
            with self.output.open("rb") as file:
                found = _RUN.search(file.read(_HEAD_BYTES))
        except OSError:
            return None
        return found[1].decode() if found else None


@define(eq=False)
class RunProcesses:
    """Those of the project in `folder`. From any thread."""

    folder: Path
    _lock: threading.Lock = field(factory=threading.Lock)
    _started: list[subprocess.Popen[bytes]] = field(factory=list)

    @property
    def _home(self) -> Path:
        return self.folder / ".arkor" / "studio"

    def start(self, click: str, *, dry_run: bool) -> RunProcess:
        """Run the trainer. `click` is the name of the click: the same one again is the same process.

        Raises `ArkorError` when the project's folder cannot be written.
        """
        with self._lock:
            self._reap()
            known = self.find(click)
            if known is not None:
                return known
            try:
                self._home.mkdir(parents=True, exist_ok=True)
                launch = RunProcess(click, self._home / f"{click}.log", dry_run, time.time())
                self._started.append(_spawn(launch, self.folder))
                (self._home / f"{click}.json").write_text(json.dumps({"dryRun": dry_run, "beganAt": launch.began_at}))
            except OSError as error:
                raise ArkorError(f"{error.filename} cannot be written ({error.strerror})") from None
            self._prune()
            return launch

    def find(self, id_: str) -> RunProcess | None:
        """The launch of that id, of this Studio or of an earlier one."""
        if not re.fullmatch(r"[0-9a-f]{32}", id_):
            return None
        try:
            noted: Mapping[str, Any] = json.loads((self._home / f"{id_}.json").read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return RunProcess(id_, self._home / f"{id_}.log", bool(noted.get("dryRun")), float(noted.get("beganAt", 0)))

    def latest(self) -> RunProcess | None:
        """The one that was started last, unless it ended and is long past."""
        self._reap()
        found = max(self._all(), key=lambda launch: launch.began_at, default=None)
        return found if found and (time.time() - found.began_at < _RECENT_SECONDS or found.alive) else None

    def _all(self) -> list[RunProcess]:
        found = (self.find(file.stem) for file in self._home.glob("*.json"))
        return [launch for launch in found if launch is not None]

    def _reap(self) -> None:
        """Those that have ended, so that no zombie is left of them."""
        self._started = [process for process in self._started if process.poll() is None]

    def _prune(self) -> None:
        """The oldest of those that have ended, when there are many."""
        for launch in sorted(self._all(), key=lambda launch: -launch.began_at)[_MAX_KEPT:]:
            if not launch.alive:
                for file in (launch.output, launch.output.with_suffix(".json")):
                    with suppress(OSError):
                        file.unlink()


def _spawn(launch: RunProcess, folder: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "arkor", "start", *(["--dry-run"] if launch.dry_run else [])]
    with launch.output.open("wb") as output:
        launch.output.chmod(0o600)
        fcntl.flock(output, fcntl.LOCK_EX)
        return subprocess.Popen(  # noqa: S603 - our own command
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
