"""Time the steps and checkpoints of a run in the process of its worker.

    python -m tests.benchmarks.timed RUN_DIR

The last line has the median seconds of a checkpoint, a recorded step and an unrecorded step.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from arkor.backend.engine.interface import Run
from arkor.backend.runs.event_log import LogWriter
from arkor.backend.runs.log_queries import ResumePoint
from arkor.backend.runs.paths import RunFolder, notifier_file
from arkor.backend.workers.recorder import LogRecorder
from arkor.backend.workers.signals import StopSignal, heartbeat
from arkor.backend.workers.worker import load_engine
from arkor.protocol.codec import from_wire
from arkor.protocol.jobs import JobConfig
from arkor.settings import arkor_home


class Timed(LogRecorder):
    """Measures checkpoints and steps; records every other step only."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.checkpoints: list[float] = []
        self.logs: list[float] = []

    def log(self, step: int, **numbers: Any) -> None:
        self.logs.append(time.perf_counter())
        if step % 2:
            super().log(step, **numbers)

    def checkpoint(self, step: int, write: Callable[[Path], None]) -> None:
        began = time.perf_counter()
        super().checkpoint(step, write)
        self.checkpoints.append(time.perf_counter() - began)

    def steps(self) -> tuple[float, float]:
        """Return the median seconds of a recorded and of an unrecorded step."""
        pauses = [after - before for before, after in pairwise(self.logs)]
        return median(pauses[0::2]), median(pauses[1::2])


def train(folder: RunFolder) -> None:
    """A worker's work, and what it took."""
    run = Run(folder.id, from_wire(JobConfig, folder.read_job()["config"]), folder.path, arkor_home())
    with LogWriter(folder.events) as log, heartbeat(folder.pid):
        recorder = Timed(log, folder, notifier_file(arkor_home()), StopSignal(), ResumePoint())
        load_engine("trl").train(run, recorder)
    print(json.dumps([median(recorder.checkpoints), *recorder.steps()]))


if __name__ == "__main__":
    train(RunFolder(Path(sys.argv[1])))
