"""The process of one run: `python -m arkor.backend.worker RUN_DIR --home DIR --engine trl|scripted`.

It needs no server. It writes the run's log, whose lock it holds from its first moment to its last, and leaves with a
terminal event in it. SIGTERM asks it to stop; what it has by then stays.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import faulthandler
import math
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from arkor.backend.bell import ring
from arkor.backend.engine import Run, RunError, load_engine
from arkor.backend.heartbeat import beating
from arkor.backend.home import RunFolder, bell_file, write_atomically
from arkor.backend.log import LogHeld, LogWriter
from arkor.errors import InvalidConfig
from arkor.events import (
    CheckpointSaved,
    Event,
    TrainingCancelled,
    TrainingCompleted,
    TrainingFailed,
    TrainingLog,
    TrainingPreparing,
    TrainingStarted,
    now,
)
from arkor.jobs import Artifact, JobConfig
from arkor.wire import from_wire

EXIT_LOG_HELD = 75


class StopSign:
    """Raised by SIGTERM."""

    def __init__(self) -> None:
        self.up = False

    def watch(self) -> None:
        """From here on SIGTERM raises it."""
        signal.signal(signal.SIGTERM, self._raise)

    def _raise(self, _number: int, _frame: object) -> None:
        self.up = True


class LogRecorder:
    """The engine's `Recorder`: every report is a line in the log."""

    def __init__(self, log: LogWriter, folder: RunFolder, bell: Path, stop: StopSign) -> None:
        self._log = log
        self._folder = folder
        self._bell = bell
        self._stop = stop
        self._step: int | None = None
        self._artifacts: list[Artifact] = []

    @property
    def stopping(self) -> bool:
        return self._stop.up

    def preparing(self, message: str) -> None:
        self.write(TrainingPreparing(self._folder.id, now(), message))

    def started(self, total_steps: int) -> None:
        self.write(TrainingStarted(self._folder.id, now(), total_steps))

    def log(
        self,
        step: int,
        *,
        loss: float | None = None,
        eval_loss: float | None = None,
        learning_rate: float | None = None,
        epoch: float | None = None,
        samples_per_second: float | None = None,
    ) -> None:
        self._step = step
        numbers = (loss, eval_loss, learning_rate, epoch, samples_per_second)
        self.write(TrainingLog(self._folder.id, now(), step, *numbers))

    def checkpoint(self, step: int, write: Callable[[Path], None]) -> None:
        folder = self._folder.checkpoint(step)
        _fill(folder, write)
        artifact = self._folder.artifact("checkpoint", folder, step)
        self._step = step
        self._artifacts.append(artifact)
        self.write(CheckpointSaved(self._folder.id, now(), step, (artifact,)), sync=True)

    def final(self, write: Callable[[Path], None]) -> None:
        _fill(self._folder.final, write)
        self._artifacts.append(self._folder.artifact("final", self._folder.final, self._step))

    def write(self, event: Event, *, sync: bool = False) -> None:
        """One event into the log, and a word to those who watch."""
        self._log.append(event, sync=sync)
        ring(self._bell)

    def completed(self, metrics: dict[str, Any]) -> Event:
        """The event that ends a run which went to its end."""
        return TrainingCompleted(self._folder.id, now(), _plain(metrics), tuple(self._artifacts))

    def cancelled(self) -> Event:
        """The event that ends a run which was asked to stop."""
        return TrainingCancelled(self._folder.id, now(), self._step, tuple(self._artifacts))

    def failed(self, sentence: str) -> Event:
        """The event that ends a run which could not go on."""
        return TrainingFailed(self._folder.id, now(), sentence, self._step, tuple(self._artifacts))


def _fill(folder: Path, write: Callable[[Path], None]) -> None:
    """`write` fills a folder beside it, which takes its place when it is complete."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)


def _plain(metrics: dict[str, Any]) -> dict[str, Any]:
    """What JSON can say of the metrics; a number that is not finite becomes null."""
    plain = {key: value for key, value in metrics.items() if isinstance(value, (str, int, float)) or value is None}
    odd = {key for key, value in plain.items() if isinstance(value, float) and not math.isfinite(value)}
    return {**plain, **dict.fromkeys(odd)}


def outcome(run: Run, recorder: LogRecorder, engine: str) -> Event:
    """Train, and return the event that ends the run, whatever happens."""
    try:
        metrics = load_engine(engine).train(run, recorder)
    except (RunError, InvalidConfig) as error:
        sentence = str(error)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever an engine raises ends as a sentence
        traceback.print_exc()
        sentence = _sentence(error, run.folder)
    else:
        return recorder.cancelled() if recorder.stopping else recorder.completed(metrics)
    return recorder.cancelled() if recorder.stopping else recorder.failed(sentence)


def _sentence(error: BaseException, folder: Path) -> str:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk that holds {error.filename or folder} is full. Free some space and submit the run again."
    if isinstance(error, MemoryError):
        return "The memory was not enough. A smaller batch_size or max_length needs less."
    return f"{type(error).__name__}: {error} (the whole story is in {folder / 'worker.log'})"


def play(folder: RunFolder, home: Path, engine: str) -> int:
    """The run of this folder from its start to its terminal event; returns the exit code."""
    stop = StopSign()
    stop.watch()
    try:
        log = LogWriter(folder.events)
    except LogHeld:
        print(f"{folder.events} is being written by another worker", file=sys.stderr)  # noqa: T201
        return EXIT_LOG_HELD
    with log, beating(folder.pid):
        if log.tail.terminal:
            return 0
        write_atomically(folder.pid, str(os.getpid()))
        recorder = LogRecorder(log, folder, bell_file(home), stop)
        recorder.preparing("Starting")
        config = from_wire(JobConfig, folder.read_job()["config"])
        run = Run(folder.id, config, folder.path, home, folder.blob_token())
        recorder.write(outcome(run, recorder, engine), sync=True)
        with contextlib.suppress(OSError):
            folder.forget_worker()
    return 0


def main() -> int:
    """Read the command line and play the run."""
    parser = argparse.ArgumentParser(prog="python -m arkor.backend.worker", description="Work on one run.")
    parser.add_argument("run", type=Path, metavar="RUN_DIR")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--engine", choices=["trl", "scripted"], default="trl")
    options = parser.parse_args()
    faulthandler.enable()
    return play(RunFolder(options.run.absolute()), options.home.absolute(), options.engine)


if __name__ == "__main__":
    sys.exit(main())
