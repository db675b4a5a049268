"""The checkpoints of a run as folders: written atomically, resumed from, pinned and pruned.

A checkpoint is an adapter that can serve completions; its folder `state` holds what training needs
to resume from it. The log determines which checkpoints exist (`log_queries.py`), the engine what
they contain.

A pin is an empty file in the run's folder, named by a step and a deployment. The server creates it
before the deployment refers to the checkpoint and removes it afterwards; the worker that prunes
keeps pinned checkpoints. Pins are files so that they survive a rebuilt database, which has no
deployments.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from arkor.backend.runs.paths import STATE_FOLDER, RunFolder, run_folder
from arkor.files import fsync_path
from arkor.protocol.best_checkpoint import BestCheckpointTracker
from arkor.protocol.deployments import Deployment
from arkor.protocol.model_target import ModelTarget

#: How many of the newest checkpoints keep their training state: one to resume from, and one in
#: reserve.
KEPT_STATES = 2

#: How many pruned checkpoints are kept as retired, and for how many seconds: a client that has just
#: read of one may still send it a request.
MAX_RETIRED, RETIREMENT_SECONDS = 20, 600.0

#: The sizes of the files of a training state, which show whether it is complete.
_MANIFEST = "files.json"

logger = logging.getLogger("arkor.backend")


# Writing


def write_folder_atomically(folder: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write into an empty folder, which then replaces `folder`. Raise OSError."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    _make_durable_folder(partial)
    try:
        fill(partial)
        if (state := partial / STATE_FOLDER).is_dir():
            sizes = {file.name: file.stat().st_size for file in sorted(state.iterdir())}
            (state / _MANIFEST).write_text(json.dumps(sizes))
        for path in (*partial.rglob("*"), partial):
            fsync_path(path)
        remove(folder)
        partial.rename(folder)
    except Exception:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    fsync_path(folder.parent)


def _make_durable_folder(folder: Path) -> None:
    """Create the folder and its missing parents, each flushed to the disk."""
    if not folder.parent.is_dir():
        _make_durable_folder(folder.parent)
        fsync_path(folder.parent.parent)
    folder.mkdir()


# Resuming


def is_resumable(folder: Path) -> bool:
    """Return whether the training state of the checkpoint in this folder is complete."""
    state = folder / STATE_FOLDER
    try:
        sizes: dict[str, int] = json.loads((state / _MANIFEST).read_bytes())
        return all((state / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def resume_step(run: RunFolder, listed: Iterable[int]) -> int | None:
    """Return the last of the `listed` steps that training can resume from, or None."""
    return max((step for step in listed if is_resumable(run.checkpoint(step))), default=None)


def locate(folder: Path) -> Path:
    """Return the present path of a checkpoint's folder, which may have been retired."""
    retired = RunFolder(folder.parent.parent).retired / folder.name
    return retired if not folder.exists() and retired.exists() else folder


# Removing


def remove(folder: Path, trash: Path | None = None) -> None:
    """Rename a folder, then delete it: an interrupted removal leaves no partial checkpoint."""
    doomed = trash or folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(doomed, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def remove_leftovers(run: RunFolder, listed: Iterable[int]) -> None:
    """Remove the incomplete and unlisted checkpoints that a killed worker left."""
    known = {str(step) for step in listed}
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for folder in list(run.checkpoints.iterdir()):
            if folder.name.startswith("."):
                shutil.rmtree(folder, ignore_errors=True)
            elif folder.name not in known:
                remove(folder)
    for folder in run.retired.glob(".*"):
        shutil.rmtree(folder, ignore_errors=True)


def prune(run: RunFolder, steps: Iterable[int], tracker: BestCheckpointTracker, keep: int) -> None:
    """Retire all checkpoints but the newest `keep` (0: keep all), the best and the pinned ones."""
    present = sorted(step for step in steps if run.checkpoint(step).is_dir())
    best = tracker.best("eval_loss", present) or tracker.best("loss", present)  # the latter without evaluations
    kept = {*present[-keep:], *run.pinned_steps(), *([best[1]] if best else [])}
    dropped = [step for step in present if step not in kept]
    with contextlib.suppress(OSError):  # an extra checkpoint does no harm
        drop_training_states(run, [step for step in present[:-KEPT_STATES] if step in kept] + dropped)
        for step in dropped:
            run.retired.mkdir(exist_ok=True)
            retired = run.retired / str(step)
            shutil.rmtree(retired, ignore_errors=True)
            run.checkpoint(step).rename(retired)
            os.utime(retired)
        remove_expired(run)


def drop_training_states(run: RunFolder, steps: Iterable[int]) -> None:
    """Remove the training state of these checkpoints and keep their adapters. Raise OSError."""
    for step in steps:
        remove(run.checkpoint(step) / STATE_FOLDER, run.checkpoints / f".{step}.{STATE_FOLDER}.removed")


def remove_expired(run: RunFolder, seconds: float = RETIREMENT_SECONDS) -> None:
    """Delete checkpoints retired `seconds` ago, and all but `MAX_RETIRED`, unless pinned."""
    with contextlib.suppress(OSError):  # no such folder, or another process removes it too
        latest = sorted(run.retired.glob("[0-9]*"), key=lambda folder: folder.stat().st_mtime, reverse=True)
        for rank, folder in enumerate(latest):
            if rank >= MAX_RETIRED or time.time() - folder.stat().st_mtime >= seconds:
                _remove_retired(run, folder)
        if not seconds:
            run.retired.rmdir()


def _remove_retired(run: RunFolder, folder: Path) -> None:
    """Delete a retired checkpoint unless it is pinned.

    It is renamed before the second look at the pins: a pin that is set after the renaming finds no
    checkpoint, and for one that was set before it the renaming is undone.
    """
    if int(folder.name) in run.pinned_steps():
        return
    doomed = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    if int(folder.name) in run.pinned_steps():
        doomed.rename(folder)
    else:
        shutil.rmtree(doomed, ignore_errors=True)


# Pinning


class CheckpointPins:
    """The pins of a home's deployments. Methods may be called from any thread."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def pin_moved(
        self, deployment_id: str, read: Callable[[], Deployment | None], target: Mapping[str, Any] | None
    ) -> Iterator[None]:
        """Move the pin around a block that sets a deployment's target (None: removes it).

        `read` returns the deployment; it is called under the lock. An exception in the block
        restores the pins. Raise OSError.
        """
        with self._lock:
            deployment = read()
            old = self._pin(deployment_id, deployment.target) if deployment else None
            new = self._pin(deployment_id, target) if target else None
            to_remove = new
            try:
                if new is not None:
                    _create(new)
                yield
                to_remove = old
            finally:
                if to_remove is not None and old != new:
                    with contextlib.suppress(OSError):  # a pin that remains costs only the space of a checkpoint
                        to_remove.unlink()
                    remove_expired(RunFolder(to_remove.parent.parent))

    def restore(self, deployments: Iterable[Deployment]) -> None:
        """Create the pins that an older version of arkor did not make, or a user deleted."""
        for deployment in deployments:
            pin = self._pin(deployment.id, deployment.target)
            if pin is not None and pin.parent.parent.is_dir() and not pin.exists():
                try:
                    _create(pin)
                except OSError as error:
                    logger.warning("The checkpoint of deployment %s could not be pinned: %s", deployment.slug, error)

    def _pin(self, deployment_id: str, target: Mapping[str, Any]) -> Path | None:
        parsed = ModelTarget.parse_or_none(target)
        if parsed is None or parsed.adapter is None or parsed.adapter.step is None:
            return None
        return run_folder(self._home, parsed.adapter.job_id).pins / f"{parsed.adapter.step}.{deployment_id}"


def _create(pin: Path) -> None:
    pin.parent.mkdir(mode=0o700, exist_ok=True)
    pin.touch(mode=0o600)
