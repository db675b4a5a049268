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

from arkor.backend.runs.paths import STATE, RunFolder
from arkor.protocol.best_checkpoint import Standings

#: So many of the newest checkpoints keep their training state: one to go on from, and one more for safety.
STATES_KEPT = 2

#: What is not kept is retired first: so many, for so many seconds. Who was told of one may be slow and still want to
#: ask it something.
RETIRED, RETIREMENT_SECONDS = 20, 600.0

_MANIFEST = "files.json"


def write_whole(folder: Path, fill: Callable[[Path], None]) -> None:
    """`fill` an empty folder beside, which takes the place of `folder` once it is on the disk to the last byte.

    Raises what `fill` raises, and OSError; then nothing is left of it.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    _make(partial)
    try:
        fill(partial)
        _seal(partial / STATE)
        _sync_all(partial)
        remove(folder)
        partial.rename(folder)
    except Exception:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _sync(folder.parent)


def remove(folder: Path) -> None:
    """Out of sight at once, then off the disk: whoever dies in between leaves nothing that looks like a checkpoint."""
    gone = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(gone, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def is_resumable(folder: Path) -> bool:
    """Whether training can go on from the checkpoint in this folder: its state is there, every file in full."""
    state = folder / STATE
    try:
        sizes: dict[str, int] = json.loads((state / _MANIFEST).read_bytes())
        return all((state / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def resume_step(run: RunFolder, listed: Iterable[int]) -> int | None:
    """The last of the `listed` steps whose checkpoint can be gone on from; None when the run has to start anew."""
    return max((step for step in listed if is_resumable(run.checkpoint(step))), default=None)


def sweep(run: RunFolder, listed: Iterable[int]) -> None:
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


def thin_out(run: RunFolder, steps: Iterable[int], standings: Standings, keep: int) -> int:
    """Of the checkpoints at `steps`, keep the newest `keep` (0: all), the best, and those that deployments answer with.

    Says how many went.
    """
    there = sorted(step for step in steps if run.checkpoint(step).is_dir())
    kept = {*there[-keep:], *best(there, standings), *run.pinned()}
    gone = [step for step in there if step not in kept]
    with contextlib.suppress(OSError):  # nobody is hurt by one too many
        forget_states(run, [step for step in there[:-STATES_KEPT] if step in kept] + gone)
        for step in gone:
            _retire(run, step)
        discharge(run)
    return len(gone)


def _retire(run: RunFolder, step: int) -> None:
    run.retired.mkdir(exist_ok=True)
    retired = run.retired / str(step)
    shutil.rmtree(retired, ignore_errors=True)
    run.checkpoint(step).rename(retired)
    os.utime(retired)


def discharge(run: RunFolder, seconds: float = RETIREMENT_SECONDS) -> None:
    """Remove the retired checkpoints that have been so for longer than that, and all but the latest `RETIRED`.

    Those stay that deployments answer with.
    """
    with contextlib.suppress(OSError):  # none there, or somebody else is at it
        latest = sorted(run.retired.glob("[0-9]*"), key=lambda folder: folder.stat().st_mtime, reverse=True)
        for place, folder in enumerate(latest):
            if place >= RETIRED or time.time() - folder.stat().st_mtime >= seconds:
                _discharge(run, folder)
        if not seconds:
            run.retired.rmdir()


def _discharge(run: RunFolder, folder: Path) -> None:
    """Out of sight first: who pins it now finds that it is gone, who has pinned it before gets it back."""
    if int(folder.name) in run.pinned():
        return
    gone = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    if int(folder.name) in run.pinned():
        gone.rename(folder)
    else:
        shutil.rmtree(gone, ignore_errors=True)


def whereabouts(folder: Path) -> Path:
    """Where a checkpoint's folder is now: it may have been retired since somebody looked."""
    retired = RunFolder(folder.parent.parent).retired / folder.name
    return retired if not folder.exists() and retired.exists() else folder


def best(steps: Iterable[int], standings: Standings) -> list[int]:
    """The step with the lowest eval loss, or if nothing was evaluated the lowest loss; empty if there is none."""
    steps = list(steps)
    found = standings.best("eval_loss", steps) or standings.best("loss", steps)
    return [found[1]] if found else []


def forget_states(run: RunFolder, steps: Iterable[int]) -> None:
    """Keep the adapters of these checkpoints alone: nobody will go on from them. Raises OSError."""
    for step in steps:
        state = run.checkpoint(step) / STATE
        gone = run.checkpoints / f".{step}.{STATE}.removed"
        if state.is_dir():
            shutil.rmtree(gone, ignore_errors=True)
            state.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)


def _make(folder: Path) -> None:
    """The folder, and those above it that are missing, each so that it survives a power cut."""
    if not folder.parent.is_dir():
        _make(folder.parent)
        _sync(folder.parent.parent)
    folder.mkdir()


def _seal(state: Path) -> None:
    """Note the size of every file of the training state, if there is one."""
    if state.is_dir():
        sizes = {file.name: file.stat().st_size for file in sorted(state.iterdir())}
        (state / _MANIFEST).write_text(json.dumps(sizes))


def _sync_all(folder: Path) -> None:
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    """What was written to this file or folder survives a power cut from here on. Raises OSError."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network disks cannot do it with folders
            raise
    finally:
        os.close(file)
