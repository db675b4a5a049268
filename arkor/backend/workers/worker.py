"""The process of a run: `python -m arkor.backend.workers.worker RUN_DIR --home DIR --engine trl`.

A worker needs no server. It holds the lock of the run's log while it is alive and ends the log with
a terminal event. SIGTERM asks it to stop; what it has trained so far is kept. Unless the run was
cancelled, SIGTERM means that the machine shuts down, and the log gets no terminal event, so that
another worker resumes the run from the last checkpoint in the log.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import faulthandler
import importlib
import os
import sys
import traceback
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import attrs

from arkor.backend.engine.interface import Engine, Run, RunError
from arkor.backend.runs import checkpoints
from arkor.backend.runs.estimate_cache import load_estimate
from arkor.backend.runs.event_log import LogLocked, LogWriter
from arkor.backend.runs.log_queries import read_resume_point
from arkor.backend.runs.paths import RunFolder, notifier_file
from arkor.backend.workers.recorder import LogRecorder, disk_problem
from arkor.backend.workers.scripted_engine import ScriptedEngine
from arkor.backend.workers.signals import StopRequested, StopSignal, heartbeat
from arkor.errors import InvalidConfig
from arkor.files import write_atomically
from arkor.protocol.codec import camel_case, from_wire
from arkor.protocol.events import Event, TrainingCancelled, TrainingCompleted
from arkor.protocol.jobs import JobConfig

#: How many unknown fields are listed.
MAX_INCOMPATIBILITIES = 10

#: Exit codes: another process writes the log; the log cannot be written; SIGTERM at shutdown (128 +
#: 15).
EXIT_LOG_HELD, EXIT_LOG_UNWRITABLE, EXIT_TERMINATED = 75, 74, 143


def load_engine(name: str) -> Engine:
    """Return the engine `"trl"` or `"scripted"`; only the former imports torch."""
    if name == "scripted":
        return ScriptedEngine()
    engine: Engine = importlib.import_module("arkor.backend.training.trl_engine").TrlEngine()
    return engine


def outcome(run: Run, recorder: LogRecorder, engine: str, stop_signal: StopSignal) -> Event:
    """Train, and return the event that ends the run; never raise."""
    try:
        with stop_signal.interruptible():
            metrics = load_engine(engine).train(run, recorder)
    except StopRequested:
        return recorder.cancelled()
    except (RunError, InvalidConfig) as error:
        message = str(error)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - every error becomes a terminal event
        with contextlib.suppress(OSError):
            traceback.print_exc()
        message = _error_message(error, run.folder)
    else:
        return recorder.cancelled() if recorder.stopping else recorder.completed(metrics)
    return recorder.cancelled() if recorder.stopping else recorder.failed(message)


def _error_message(error: BaseException, folder: Path) -> str:
    problem = disk_problem(error)
    if problem:
        path = getattr(error, "filename", None) or folder
        return f"{path} could not be written: {problem}. Free some space there and submit the run again."
    if isinstance(error, MemoryError):
        return "The run ran out of memory. Reduce batch_size or max_length."
    return f"{type(error).__name__}: {error} (the traceback is in {folder / 'worker.log'})"


def run_worker(folder: RunFolder, home: Path, engine: str) -> int:
    """Continue the run in this folder to its terminal event; return the exit code."""
    stop_signal = StopSignal()
    stop_signal.install()
    try:
        with LogWriter(folder.events) as log, heartbeat(folder.pid):
            return 0 if log.tail.terminal else _run_to_end(folder, home, engine, log, stop_signal)
    except LogLocked:
        _log(f"{folder.events} is being written by another worker")
        return EXIT_LOG_HELD
    except OSError as error:
        problem = disk_problem(error) or str(error)
        _log(f"The run cannot continue: its log {folder.events} cannot be written: {problem}. Free some space there.")
        return EXIT_LOG_UNWRITABLE


def _run_to_end(folder: RunFolder, home: Path, engine: str, log: LogWriter, stop_signal: StopSignal) -> int:
    """Resume from the last checkpoint, if any; return the exit code. Raise OSError."""
    write_atomically(folder.pid, str(os.getpid()))
    resume_point = read_resume_point(folder)
    checkpoints.remove_leftovers(folder, resume_point.saved)
    step = checkpoints.resume_step(folder, resume_point.saved)
    job = folder.read_job()
    config_data = job["config"]
    recorder = LogRecorder(
        log, folder, notifier_file(home), stop_signal, resume_point, estimate=load_estimate(home, config_data)
    )
    recorder.prune_checkpoints()  # the previous worker may have died before it did this
    recorder.preparing("Starting")
    config = from_wire(JobConfig, config_data)
    if not resume_point.started:
        for warning in incompatibilities(config):
            recorder.warn(warning)
    checkpoint = folder.checkpoint(step) if step is not None else None
    run = Run(folder.id, config, folder.path, home, folder.blob_token(), checkpoint, submission_time(job))
    final_event = outcome(run, recorder, engine, stop_signal)
    if isinstance(final_event, TrainingCancelled) and not folder.cancelled.exists():
        return EXIT_TERMINATED
    recorder.write(final_event, sync=True)
    with contextlib.suppress(OSError):
        folder.clear_worker_files()
        if isinstance(final_event, TrainingCompleted):
            recorder.drop_training_states()
    return 0


def submission_time(job: dict[str, Any]) -> datetime | None:
    """Return when a run was submitted, or None if that cannot be read."""
    try:
        return datetime.fromisoformat(job["createdAt"].replace("Z", "+00:00")).astimezone()
    except (KeyError, AttributeError, ValueError):
        return None


def incompatibilities(config: JobConfig) -> list[str]:
    """Return warnings for the fields of a configuration that are ignored, at most some of them."""
    found = [*_unknown_fields("config", config), *_unknown_fields("config.datasetSource", config.dataset_source)]
    if config.gpu_types:
        found.insert(0, "config.gpuTypes is ignored: this backend trains on its own device.")
    omitted = len(found) - MAX_INCOMPATIBILITIES
    last = [f"{omitted} more unknown fields of the config are ignored."] if omitted > 0 else []
    return [*found[:MAX_INCOMPATIBILITIES], *last]


def _unknown_fields(path: str, value: Any) -> Iterator[str]:
    fields = attrs.fields(type(value)) if attrs.has(type(value)) else ()
    known = [camel_case(item.name) for item in fields if item.init and item.name != "extra"]
    for name in getattr(value, "extra", ()):
        suggestions = difflib.get_close_matches(name[:80], known, n=1)
        hint = f"Did you mean {suggestions[0]}?" if suggestions else "It is ignored."
        yield f"{path}.{name[:80]} is not a field that this backend knows. {hint}"


def _log(message: str) -> None:
    """Write to the worker's log, if that is possible."""
    with contextlib.suppress(OSError):
        print(message, file=sys.stderr, flush=True)  # noqa: T201


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m arkor.backend.workers.worker", description="Train one run.")
    parser.add_argument("run", type=Path, metavar="RUN_DIR")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--engine", choices=["trl", "scripted"], default="trl")
    options = parser.parse_args()
    faulthandler.enable()
    return run_worker(RunFolder(options.run.absolute()), options.home.absolute(), options.engine)


if __name__ == "__main__":
    code = main()
    if code == EXIT_LOG_UNWRITABLE:  # flushing stderr would fail and change the exit code to 120
        os._exit(code)
    sys.exit(code)
