"""What lies where below a backend's home: its files by name, and the folder of a run.

Nothing here knows what is inside those files, the two that are JSON secrets aside.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import frozen

from arkor.protocol.jobs import Artifact

#: How the name of an upload ends while it is coming in.
PARTIAL_SUFFIX = ".part"

#: How long `backend.log` may get, in bytes; two of them are kept.
MAX_LOG_BYTES = 5_000_000

#: How the name of a run's folder ends while it is being put together.
NEW_SUFFIX = ".new"

#: The folder in a checkpoint with what training needs to go on from it.
STATE_FOLDER = "state"


def prepare(home: Path) -> None:
    """Make the home and its folders, for the owner's eyes alone. Raises OSError."""
    for folder in (home, datasets_folder(home), runs_folder(home), models_folder(home)):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def remove_leftovers(home: Path) -> None:
    """Clear away the torn uploads and runs of a server that is dead. Raises OSError."""
    for abandoned in datasets_folder(home).glob(f"*{PARTIAL_SUFFIX}"):
        abandoned.unlink(missing_ok=True)
    for abandoned in runs_folder(home).glob(f".*{NEW_SUFFIX}"):
        shutil.rmtree(abandoned, ignore_errors=True)


def truncate_log(home: Path) -> None:
    """Once the server's log has grown long, go on with an empty one; the old one stays for a while. Raises OSError."""
    log = home / "backend.log"
    if log.exists() and log.stat().st_size > MAX_LOG_BYTES:
        shutil.copyfile(log, home / "backend.log.1")
        os.truncate(log, 0)  # whoever writes appends; a new file would have to be told to them


def address_file(home: Path) -> Path:
    """Where the server that listens says so: URL, token, pid."""
    return home / "backend.json"


def lock_file(home: Path) -> Path:
    return home / "backend.lock"


def owner_token_file(home: Path) -> Path:
    """The token of the home's owner; it stays the same over restarts of the server."""
    return home / "owner.token"


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
    """Cache of converted models."""
    return home / "models"


def checks_folder(home: Path) -> Path:
    """What checks have found that runs will take; below it, what the check at work needs for the moment."""
    return home / "checks"


@frozen
class RunFolder:
    """A run is a folder: what was asked (`job`), what happened (`events`), what was printed, what came of it."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def job(self) -> Path:
        return self.path / "job.json"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def worker_log(self) -> Path:
        return self.path / "worker.log"

    @property
    def pid(self) -> Path:
        return self.path / "worker.pid"

    @property
    def cancelled(self) -> Path:
        """Is there from the moment on at which somebody cancelled the run, until that has been done."""
        return self.path / "cancelled"

    @property
    def secret(self) -> Path:
        """The data set's token, while the run has not ended; nowhere else is it kept."""
        return self.path / "secret.json"

    @property
    def final(self) -> Path:
        return self.path / "final"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / str(step)

    @property
    def retired(self) -> Path:
        """Checkpoints that are listed no more, for as long as somebody may still be about to ask them something."""
        return self.path / "retired"

    @property
    def pins(self) -> Path:
        """A file `<step>.<deployment>` for each deployment that answers with a checkpoint of this run."""
        return self.path / "pins"

    def pinned_steps(self) -> set[int]:
        """The steps of the checkpoints that deployments answer with."""
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
        """The process that says that it is this run's worker; whether it lives is the log's lock's to say."""
        try:
            return int(self.pid.read_text())
        except (FileNotFoundError, ValueError):
            return None

    def clear_worker_files(self) -> None:
        """Remove what is of use only while a worker runs: its process id, the secret, what it is busy with."""
        for torn in (*self.path.glob(".*"), *self.checkpoints.glob(".*")):
            shutil.rmtree(torn) if torn.is_dir() else torn.unlink()
        self.pid.unlink(missing_ok=True)
        self.cancelled.unlink(missing_ok=True)
        self.secret.unlink(missing_ok=True)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def artifact(self, kind: str, folder: Path, step: int | None) -> Artifact:
        """`folder`, below this one, as the wire lists it; `bytes` is the sum of its files, training state aside."""
        size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
        return Artifact(kind=kind, step=step, path=str(folder.relative_to(self.path)), bytes=size)


def run_folder(home: Path, job_id: str) -> RunFolder:
    return RunFolder(runs_folder(home) / job_id)


def create_run(home: Path, job: dict[str, Any], blob_token: str | None) -> RunFolder:
    """A new run's folder with its `job.json`, an empty event log, and the secret if there is one. Raises OSError."""

    def fill(folder: RunFolder) -> None:
        write_atomically(folder.job, json.dumps(job, ensure_ascii=False, indent=1))
        if blob_token is not None:
            write_atomically(folder.secret, json.dumps({"blobToken": blob_token}))
        folder.events.touch(mode=0o600)

    return build_atomically(home, job["id"], fill)


def build_atomically(home: Path, job_id: str, fill: Callable[[RunFolder], None]) -> RunFolder:
    """A run's folder that is there as soon as `fill` is through with it, or not at all. Raises what `fill` does."""
    folder = run_folder(home, job_id)
    partial = RunFolder(folder.path.with_name(f".{job_id}{NEW_SUFFIX}"))
    partial.remove()
    partial.path.mkdir(mode=0o700)
    try:
        fill(partial)
        _fsync_folder(partial.path)
        partial.path.rename(folder.path)
        _fsync_folder(folder.path.parent)
    except BaseException:
        partial.remove()
        raise
    return folder


def _fsync_folder(path: Path) -> None:
    """The names in this folder survive a power cut from here on."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def run_ids(home: Path) -> list[str]:
    """The names of the run folders that there are."""
    with os.scandir(runs_folder(home)) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def write_atomically(path: Path, text: str) -> None:
    """Whole or not at all, even if the power fails; mode 0600. Raises OSError."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise
