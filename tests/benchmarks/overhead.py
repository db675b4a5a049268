"""The overhead of a worker with its log, compared with the bare engine.

    python tests/benchmarks/overhead.py [DATA] [--rounds N] [--steps N]

Both train the same steps on the same rows in alternating processes; measures the seconds of the
steps, including checkpoints.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from statistics import median

from arkor.backend.engine.interface import Recorder, Run
from arkor.backend.runs.paths import RunFolder, create_run, datasets_folder, prepare
from arkor.backend.workers.worker import load_engine
from arkor.protocol.codec import from_wire, to_wire
from arkor.protocol.datasets import BlobDataset
from arkor.protocol.jobs import JobConfig
from arkor.settings import STARTER_MODEL, arkor_home
from tests.benchmarks import intents


class CheckpointWriter(Recorder):
    """Writes checkpoints; ignores everything else."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def checkpoint(self, step: int, write: Callable[[Path], None]) -> None:
        self._fill(f"step-{step}", write)

    def final(self, write: Callable[[Path], None]) -> None:
        self._fill("last", write)

    def _fill(self, name: str, write: Callable[[Path], None]) -> None:
        folder = self._folder / name
        folder.mkdir()
        write(folder)


def prepared(data: Path, steps: int) -> RunFolder:
    """Create a run that has not started, with its rows in the backend's files."""
    home = arkor_home()
    rows = "\n".join(json.dumps(row) for row in intents.training_rows(data)).encode()
    digest = hashlib.sha256(rows).hexdigest()
    prepare(home)
    (datasets_folder(home) / digest).write_bytes(rows)
    source = BlobDataset(f"/v1/datasets/{digest}/rows.jsonl")
    config = JobConfig(STARTER_MODEL, source, max_steps=steps, batch_size=8, learning_rate=1e-3)
    return create_run(home, {"id": uuid.uuid4().hex, "config": to_wire(config)}, None)


def bare(folder: RunFolder) -> None:
    """Run the engine only; print the seconds of its steps."""
    run = Run(folder.id, from_wire(JobConfig, folder.read_job()["config"]), folder.path, arkor_home())
    print(load_engine("trl").train(run, CheckpointWriter(folder.path))["seconds"])


def seconds_of_bare(folder: RunFolder) -> float:
    command = [sys.executable, "-m", "tests.benchmarks.overhead", "--bare", str(folder.path)]
    return float(subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True).split()[-1])


def seconds_of_worker(folder: RunFolder) -> float:
    command = [sys.executable, "-m", "arkor.backend.workers.worker", str(folder.path), "--home", str(arkor_home())]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ending = json.loads(folder.events.read_bytes().splitlines()[-1])
    return float(ending["metrics"]["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, default=intents.DATA, help="the folder of banking77")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        bare(RunFolder(options.bare))
        return
    rounds = []
    for _ in range(options.rounds):
        alone = seconds_of_bare(prepared(options.data, options.steps))
        rounds.append((alone, seconds_of_worker(prepared(options.data, options.steps))))
        print(f"engine alone {rounds[-1][0]:.2f} s, as a run {rounds[-1][1]:.2f} s", flush=True)
    alone, run = (median(column) for column in zip(*rounds, strict=True))
    print(f"the machinery costs {run / alone - 1:+.1%} of {options.steps} steps")


if __name__ == "__main__":
    main()
