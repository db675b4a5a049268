"""The layout of a backend's home: the paths of its files, and the folder of a run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import frozen

from arkor.files import fsync_path, write_atomically
from arkor.protocol.jobs import Artifact

#: Parts of names: of an incomplete upload, an incomplete run folder, the working folder of a check.
PARTIAL_SUFFIX, NEW_SUFFIX, CHECK_PREFIX = ".part", ".new", ".at-work-"

#: The size in bytes at which `backend.log` is rotated; the file before it is kept.
MAX_LOG_BYTES = 5_000_000

#: The folder in a checkpoint that holds the training state.
STATE_FOLDER = "state"


def prepare(home: Path) -> None:
    """Create the home and its folders, accessible to the owner only. Raise OSError."""
    for folder in (home, datasets_folder(home), runs_folder(home), models_folder(home)):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def leftovers(home: Path) -> list[Path]:
    """Return the incomplete uploads, the new run folders and the checks of a killed server."""
    folders = (*runs_folder(home).glob(f".*{NEW_SUFFIX}"), *checks_folder(home).glob(f"{CHECK_PREFIX}*"))
    return [*datasets_folder(home).glob(f"*{PARTIAL_SUFFIX}"), *folders]


def remove_leftovers(home: Path) -> None:
    """Remove what a killed server has left. Raise OSError."""
    for path in leftovers(home):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def rotate_log(home: Path) -> None:
    """Move the content of a long `backend.log` to `backend.log.1`. Raise OSError."""
    log = home / "backend.log"
    if log.exists() and log.stat().st_size > MAX_LOG_BYTES:
        shutil.copyfile(log, home / "backend.log.1")
        os.truncate(log, 0)  # the open file descriptors append, so renaming it would not redirect them


def address_file(home: Path) -> Path:
    """The URL, token and process id of the server that is running."""
    return home / "backend.json"


def notifier_file(home: Path) -> Path:
    return home / "bell"


def database_file(home: Path) -> Path:
    return home / "arkor.db"


def datasets_folder(home: Path) -> Path:
    """Uploaded files, each named by the SHA-256 of its content."""
    return home / "datasets"


def runs_folder(home: Path) -> Path:
    return home / "runs"


def models_folder(home: Path) -> Path:
    return home / "models"


def checks_folder(home: Path) -> Path:
    """The cache of estimates, and the working folder of the check that is running."""
    return home / "checks"


class _Below:
    """A path in the folder of a run."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, run: RunFolder, _: type[RunFolder]) -> Path:
        return run.path / self._name


@frozen
class RunFolder:
    """The folder of a run: its configuration (`job`), event log, output and artifacts."""

    path: Path

    job = _Below("job.json")
    events = _Below("events.jsonl")
    worker_log = _Below("worker.log")
    pid = _Below("worker.pid")
    final = _Below("final")
    checkpoints = _Below("checkpoints")

    #: An empty file that exists from the request to cancel the run until the run has ended.
    cancelled = _Below("cancelled")

    #: The data set's token; it is stored here only, and removed when the run ends.
    secret = _Below("secret.json")

    #: Checkpoints that have been pruned from the list, kept for requests that already refer to
    #: them.
    retired = _Below("retired")

    #: A file `<step>.<deployment>` for each deployment that serves a checkpoint of this run.
    pins = _Below("pins")

    @property
    def id(self) -> str:
        return self.path.name

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / str(step)

    def pinned_steps(self) -> set[int]:
        """The steps of the checkpoints that deployments serve."""
        names = [pin.name.partition(".")[0] for pin in self.pins.glob("*.*")]
        return {int(name) for name in names if name.isdecimal()}

    def read_job(self) -> dict[str, Any]:
        job: dict[str, Any] = json.loads(self.job.read_bytes())
        return job

    def blob_token(self) -> str | None:
        try:
            token: str = json.loads(self.secret.read_bytes())["blobToken"]
        except FileNotFoundError:
            return None
        return token

    def worker_pid(self) -> int | None:
        """The process id of the last worker, which is alive only while the log is locked."""
        try:
            return int(self.pid.read_text())
        except (FileNotFoundError, ValueError):
            return None

    def clear_worker_files(self) -> None:
        """Remove the files that only a running worker needs: process id, secret, partial output."""
        for partial in (*self.path.glob(".*"), *self.checkpoints.glob(".*")):
            shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
        for file in (self.pid, self.cancelled, self.secret):
            file.unlink(missing_ok=True)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def artifact(self, kind: str, folder: Path, step: int | None) -> Artifact:
        """Describe a folder of the run; `bytes` excludes the training state."""
        size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
        return Artifact(kind=kind, step=step, path=str(folder.relative_to(self.path)), bytes=size)


def run_folder(home: Path, job_id: str) -> RunFolder:
    return RunFolder(runs_folder(home) / job_id)


def run_ids(home: Path) -> list[str]:
    with os.scandir(runs_folder(home)) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def create_run(home: Path, job: dict[str, Any], blob_token: str | None) -> RunFolder:
    """Create the folder of a run with `job.json`, an empty log and the secret. Raise OSError."""

    def fill(folder: RunFolder) -> None:
        write_atomically(folder.job, json.dumps(job, ensure_ascii=False, indent=1))
        if blob_token is not None:
            write_atomically(folder.secret, json.dumps({"blobToken": blob_token}))
        folder.events.touch(mode=0o600)

    return build_atomically(home, job["id"], fill)


def build_atomically(home: Path, job_id: str, fill: Callable[[RunFolder], None]) -> RunFolder:
    """Create a run's folder, which appears when `fill` has returned. Raise what it raises."""
    folder = run_folder(home, job_id)
    partial = RunFolder(folder.path.with_name(f".{job_id}{NEW_SUFFIX}"))
    partial.remove()
    partial.path.mkdir(mode=0o700)
    try:
        fill(partial)
        fsync_path(partial.path)
        partial.path.rename(folder.path)
        fsync_path(folder.path.parent)
    except BaseException:
        partial.remove()
        raise
    return folder
