"""Child process that checks one run.

    python -m arkor.backend.preflight.process --home DIR --engine trl|scripted

It reads one line from stdin: `{"config": {…}, "token": …, "folder": …, "busy": …}`. It writes JSON
objects to stdout, one a line: `{"progress"}`, `{"device"}`, `{"found": {…}}` (fields of
`Check`), and at the end `{"done": true}` or `{"refused": message}`.

It exits when stdin ends. Runs have precedence over it for memory, and if `busy` for CPU time.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Any

from arkor.backend.compute.child_process import ParentConnection, parse_options
from arkor.backend.compute.process_tuning import NICENESS, prefer_oom_kill
from arkor.backend.engine.interface import Run, RunError
from arkor.backend.preflight.data_report import Emit
from arkor.backend.preflight.dry_run import DryRun, ScriptedDryRun
from arkor.errors import InvalidConfig
from arkor.protocol.codec import from_wire
from arkor.protocol.jobs import JobConfig


def run_check(request: dict[str, Any], home: Path, engine: str, emit: Emit) -> None:
    """Check a run and send all results."""
    try:
        config, folder = from_wire(JobConfig, request["config"]), Path(request["folder"])
        run = Run("check", config, folder, home, request.get("token"))
        dry_run: type[ScriptedDryRun | DryRun] = ScriptedDryRun if engine == "scripted" else DryRun
        dry_run(emit, request["busy"]).check(run)
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
