"""The checkpoints of a run as folders: written whole or not at all, resumed from, kept and cleared away.

A checkpoint is an adapter that can be answered from; in its folder `state` lies what training needs to go on from it.
Which ones there are is the log's to say (`log_queries.py`), what is in them the engine's.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from arkor.backend.runs.paths import STATE_FOLDER, RunFolder
from arkor.protocol.best_checkpoint import BestCheckpointTracker

#: So many of the newest checkpoints keep their training state: one to go on from, and one more for safety.
KEPT_STATES = 2

#: What is not kept is retired first: so many, for so many seconds. Who was told of one may be slow and still want to
#: ask it something.
MAX_RETIRED, RETIREMENT_SECONDS = 20, 600.0

_MANIFEST = "files.json"


def write_folder_atomically(folder: Path, fill: Callable[[Path], None]) -> None:
    """`fill` an empty folder beside, which takes the place of `folder` once it is on the disk to the last byte.

    Raises what `fill` raises, and OSError; then nothing is left of it.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    _make_durable_folder(partial)
    try:
        fill(partial)
        _write_manifest(partial / STATE_FOLDER)
        _fsync_tree(partial)
        remove(folder)
        partial.rename(folder)
    except Exception:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _fsync(folder.parent)


def remove(folder: Path) -> None:
    """Out of sight at once, then off the disk: whoever dies in between leaves nothing that looks like a checkpoint."""
    doomed = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(doomed, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def is_resumable(folder: Path) -> bool:
    """Whether training can go on from the checkpoint in this folder: its state is there, every file in full."""
    state = folder / STATE_FOLDER
    try:
        sizes: dict[str, int] = json.loads((state / _MANIFEST).read_bytes())
        return all((state / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def resume_step(run: RunFolder, listed: Iterable[int]) -> int | None:
    """The last of the `listed` steps whose checkpoint can be gone on from; None when the run has to start anew."""
    return max((step for step in listed if is_resumable(run.checkpoint(step))), default=None)


def remove_leftovers(run: RunFolder, listed: Iterable[int]) -> None:
    """Clear away what a dead worker left behind: half of a checkpoint, or a whole one that the log does not list."""
    known = {str(step) for step in listed}
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for folder in list(run.checkpoints.iterdir()):
            if folder.name.startswith("."):
                shutil.rmtree(folder, ignore_errors=True)
            elif folder.name not in known:
                remove(folder)
    for folder in run.retired.glob(".*"):
        shutil.rmtree(folder, ignore_errors=True)


def prune(run: RunFolder, steps: Iterable[int], tracker: BestCheckpointTracker, keep: int) -> int:
    """Of the checkpoints at `steps`, keep the newest `keep` (0: all), the best, and those that deployments answer with.

    Says how many went.
    """
    present = sorted(step for step in steps if run.checkpoint(step).is_dir())
    kept = {*present[-keep:], *best_steps(present, tracker), *run.pinned_steps()}
    dropped = [step for step in present if step not in kept]
    with contextlib.suppress(OSError):  # nobody is hurt by one too many
        drop_training_states(run, [step for step in present[:-KEPT_STATES] if step in kept] + dropped)
        for step in dropped:
            _retire(run, step)
        remove_expired(run)
    return len(dropped)


def _retire(run: RunFolder, step: int) -> None:
    run.retired.mkdir(exist_ok=True)
    retired = run.retired / str(step)
    shutil.rmtree(retired, ignore_errors=True)
    run.checkpoint(step).rename(retired)
    os.utime(retired)


def remove_expired(run: RunFolder, seconds: float = RETIREMENT_SECONDS) -> None:
    """Remove the retired checkpoints that have been so for longer than that, and all but the latest `MAX_RETIRED`.

    Those stay that deployments answer with.
    """
    with contextlib.suppress(OSError):  # none there, or somebody else is at it
        latest = sorted(run.retired.glob("[0-9]*"), key=lambda folder: folder.stat().st_mtime, reverse=True)
        for rank, folder in enumerate(latest):
            if rank >= MAX_RETIRED or time.time() - folder.stat().st_mtime >= seconds:
                _remove_retired(run, folder)
        if not seconds:
            run.retired.rmdir()


def _remove_retired(run: RunFolder, folder: Path) -> None:
    """Out of sight first: who pins it now finds that it is gone, who has pinned it before gets it back."""
    if int(folder.name) in run.pinned_steps():
        return
    doomed = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    if int(folder.name) in run.pinned_steps():
        doomed.rename(folder)
    else:
        shutil.rmtree(doomed, ignore_errors=True)


def locate(folder: Path) -> Path:
    """Where a checkpoint's folder is now: it may have been retired since somebody looked."""
    retired = RunFolder(folder.parent.parent).retired / folder.name
    return retired if not folder.exists() and retired.exists() else folder


def best_steps(steps: Iterable[int], tracker: BestCheckpointTracker) -> list[int]:
    """The step with the lowest eval loss, or if nothing was evaluated the lowest loss; empty if there is none."""
    steps = list(steps)
    found = tracker.best("eval_loss", steps) or tracker.best("loss", steps)
    return [found[1]] if found else []


def drop_training_states(run: RunFolder, steps: Iterable[int]) -> None:
    """Keep the adapters of these checkpoints alone: nobody will go on from them. Raises OSError."""
    for step in steps:
        state = run.checkpoint(step) / STATE_FOLDER
        doomed = run.checkpoints / f".{step}.{STATE_FOLDER}.removed"
        if state.is_dir():
            shutil.rmtree(doomed, ignore_errors=True)
            state.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def _make_durable_folder(folder: Path) -> None:
    """The folder, and those above it that are missing, each so that it survives a power cut."""
    if not folder.parent.is_dir():
        _make_durable_folder(folder.parent)
        _fsync(folder.parent.parent)
    folder.mkdir()


def _write_manifest(state: Path) -> None:
    """Note the size of every file of the training state, if there is one."""
    if state.is_dir():
        sizes = {file.name: file.stat().st_size for file in sorted(state.iterdir())}
        (state / _MANIFEST).write_text(json.dumps(sizes))


def _fsync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        _fsync(path)
    _fsync(folder)


def _fsync(path: Path) -> None:
    """What was written to this file or folder survives a power cut from here on. Raises OSError."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network disks cannot do it with folders
            raise
    finally:
        os.close(file)
