"""Child process that checks one run: `python -m arkor.backend.preflight.process --home DIR --engine
trl|scripted`.

It reads one line from stdin: `{"config": {…}, "token": …, "folder": …, "busy": …}`. It writes JSON
objects to stdout, one a line: `{"say"}` (progress), `{"device"}`, `{"found": {…}}` (fields of
`Check`), and at the end `{"done": true}` or `{"refused": message}`.

It exits when stdin ends. Runs have precedence over it for memory, and if `busy` for CPU time.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from attrs import frozen

from arkor.backend.compute.child_process import ParentConnection, parse_options
from arkor.backend.compute.process_tuning import NICENESS, prefer_oom_kill
from arkor.backend.data.datasets import load_rows
from arkor.backend.data.download import private_urls_allowed
from arkor.backend.data.file_readers import DataError
from arkor.backend.engine.interface import Run, RunError
from arkor.backend.preflight.data_report import Emit, data_problems, row_counts
from arkor.backend.workers.scripted_engine import ScriptedEngine
from arkor.errors import InvalidConfig
from arkor.protocol.codec import from_wire, to_wire
from arkor.protocol.datasets import BlobDataset
from arkor.protocol.estimates import Estimate
from arkor.protocol.jobs import JobConfig


@frozen
class ScriptedDryRun:
    """Checks a run of the scripted engine, which has no tokens: the rows of an upload, and the time."""

    emit: Emit
    busy: bool

    def check(self, run: Run) -> None:
        """See `DryRun.check`."""
        config = run.config
        if config.model == "scripted/fail":
            raise RunError("This model fails by design; name another one.")
        self.emit({"device": "cpu"})
        self.emit({"say": "Reading the data"})
        try:
            if isinstance(config.dataset_source, BlobDataset):
                rows = load_rows(
                    config.dataset_source,
                    format=(config.dataset_format or {}).get("type"),
                    split=config.dataset_split,
                    home=run.home,
                    token=run.blob_token,
                    allow_private=private_urls_allowed(),
                )
                self.emit({"found": row_counts(rows)})
        except DataError as error:
            self.emit({"found": data_problems(error)})
            return
        steps, seconds = config.max_steps or 10, ScriptedEngine().step_seconds
        estimate = Estimate(steps, round(steps * seconds, 3), seconds, device="paper", busy=self.busy)
        self.emit({"found": {"estimate": to_wire(estimate)}})


def load_dry_run(engine: str, emit: Emit, *, busy: bool) -> Any:
    """Return the dry run of an engine; only "trl" imports the libraries for training."""
    if engine == "scripted":
        return ScriptedDryRun(emit, busy)
    return importlib.import_module("arkor.backend.preflight.dry_run").DryRun(emit, busy)


def run_check(request: dict[str, Any], home: Path, engine: str, emit: Emit) -> None:
    """Check a run and send all results."""
    try:
        config, folder = from_wire(JobConfig, request["config"]), Path(request["folder"])
        run = Run("check", config, folder, home, request.get("token"))
        load_dry_run(engine, emit, busy=request["busy"]).check(run)
    except (RunError, InvalidConfig) as error:
        emit({"refused": str(error)})
        return
    except MemoryError:
        problem = "There was not enough memory. A smaller batch_size or max_length needs less."
        emit({"found": {"problems": [problem]}})
    emit({"done": True})


def main() -> None:
    """Check the run that stdin describes, then exit without waiting for the end of stdin."""
    options = parse_options("arkor.backend.preflight.process", "Check a run for the server.")
    prefer_oom_kill()
    parent = ParentConnection()
    request = parent.receive()
    if request["busy"]:  # otherwise the steps are timed with the priority of a run
        os.nice(NICENESS)
    parent.listen(lambda _: None)
    code = 0
    try:
        run_check(request, options.home, options.engine, parent.send)
    except Exception:  # noqa: BLE001 - reported by the exit code and in the log
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
