"""Child process: looks at one run that somebody thinks of starting, and takes a few of its steps.

    python -m arkor.backend.preflight.process --home DIR --engine trl|scripted

In, one line:  `{"config": {…}, "token": …, "folder": …, "busy": …}`; then stdin stays open.
Out, a JSON object a line: `{"say"}` (what it is at), `{"device"}` (where it computes), `{"found": {…}}` (in the fields
of `checks.Check`), and at last `{"done": true}` or `{"refused": sentence}`.

It leaves when stdin ends, whatever it is doing: then nobody waits for it. A run in progress is never its victim: it
is nicer than one, and the first to go when the machine has no memory left.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from attrs import frozen

from arkor.backend.compute.process_tuning import NICENESS, claim_stdout, prefer_oom_kill
from arkor.backend.data.datasets import load_rows
from arkor.backend.data.download import private_urls_allowed
from arkor.backend.data.file_readers import DataError
from arkor.backend.engine.interface import Run, RunError
from arkor.backend.preflight.data_report import Emit, data_problems, row_counts
from arkor.backend.workers.scripted_engine import ScriptedEngine
from arkor.errors import InvalidConfig
from arkor.protocol.codec import dumps, from_wire, to_wire
from arkor.protocol.datasets import BlobDataset
from arkor.protocol.estimates import Estimate
from arkor.protocol.jobs import JobConfig


@frozen
class ScriptedDryRun:
    """Of a run of the scripted engine, which knows no tokens: the rows of an upload, and how long it will take."""

    emit: Emit
    busy: bool

    def dry_run(self, run: Run) -> None:
        """See `arkor.backend.preflight.dry_run.DryRun`."""
        config = run.config
        if config.model == "scripted/fail":
            raise RunError("This model fails by design; name another one.")
        self.emit({"device": "cpu"})
        self.emit({"say": "Reading the data"})
        try:
            if isinstance(config.dataset_source, BlobDataset):
                kind, private = (config.dataset_format or {}).get("type"), private_urls_allowed()
                rows = load_rows(
                    config.dataset_source,
                    format=kind,
                    split=config.dataset_split,
                    home=run.home,
                    token=run.blob_token,
                    allow_private=private,
                )
                self.emit({"found": row_counts(rows)})
        except DataError as error:
            self.emit({"found": data_problems(error)})
            return
        steps, seconds = config.max_steps or 10, ScriptedEngine().step_seconds
        estimate = Estimate(steps, round(steps * seconds, 3), seconds, device="paper", busy=self.busy)
        self.emit({"found": {"estimate": to_wire(estimate)}})


def load_dry_run(engine: str, emit: Emit, *, busy: bool) -> Any:
    """`"trl"`, or `"scripted"`; torch and its kin are imported with the former alone."""
    if engine == "scripted":
        return ScriptedDryRun(emit, busy)
    return importlib.import_module("arkor.backend.preflight.dry_run").DryRun(emit, busy)


def run_check(request: dict[str, Any], home: Path, engine: str, emit: Emit) -> None:
    """Everything, in lines; the last one says how it ended."""
    try:
        config, folder = from_wire(JobConfig, request["config"]), Path(request["folder"])
        run = Run("check", config, folder, home, request.get("token"))
        load_dry_run(engine, emit, busy=request["busy"]).dry_run(run)
    except (RunError, InvalidConfig) as error:
        emit({"refused": str(error)})
    except MemoryError:
        emit({"found": {"problems": ["The memory was not enough. A smaller batch_size or max_length needs less."]}})
        emit({"done": True})
    else:
        emit({"done": True})


def exit_with(stream: Any) -> None:
    """The end of the stream is the end of the process."""
    stream.read()
    os._exit(0)


def main() -> None:
    """Read the command line and the question, answer it, and leave at once, whatever still waits for stdin to end."""
    parser = argparse.ArgumentParser(prog="python -m arkor.backend.preflight.process", description="Look at a run.")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--engine", choices=["trl", "scripted"], required=True)
    options = parser.parse_args()
    prefer_oom_kill()
    stream = claim_stdout()
    request = json.loads(sys.stdin.buffer.readline())
    if request["busy"]:  # else the steps are to be timed as those of a run
        os.nice(NICENESS)
    threading.Thread(target=exit_with, args=(sys.stdin.buffer,), daemon=True).start()

    def emit(line: dict[str, Any]) -> None:
        stream.write(dumps(line).encode() + b"\n")

    code = 0
    try:
        run_check(request, options.home, options.engine, emit)
    except Exception:  # noqa: BLE001 - it is told by the exit code; the log says more
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
