"""The process of one run: `python -m arkor.backend.workers.worker RUN_DIR --home DIR --engine trl|scripted`.

It needs no server. It writes the run's log, whose lock it holds from its first moment to its last, and leaves with a
terminal event in it. SIGTERM asks it to stop; what it has by then stays. If nobody has cancelled the run, it is the
machine that asks, as it is shut down, and the log stays open for another worker. Started again after it died, it goes
on from the last checkpoint in the log.
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
from pathlib import Path
from typing import Any

import attrs

from arkor.backend.engine.interface import Engine, Run, RunError
from arkor.backend.runs import checkpoints
from arkor.backend.runs.estimate_cache import load_estimate
from arkor.backend.runs.event_log import LogLocked, LogWriter
from arkor.backend.runs.log_queries import read_resume_point
from arkor.backend.runs.paths import RunFolder, notifier_file, write_atomically
from arkor.backend.workers.heartbeat import heartbeat
from arkor.backend.workers.recorder import LogRecorder, disk_problem
from arkor.backend.workers.scripted_engine import ScriptedEngine
from arkor.backend.workers.stop_signal import StopRequested, StopSignal
from arkor.errors import InvalidConfig
from arkor.protocol.codec import camel_case, from_wire
from arkor.protocol.events import Event, TrainingCancelled, TrainingCompleted
from arkor.protocol.jobs import JobConfig
from arkor.settings import max_kept_checkpoints

#: How many fields that nobody knows are named.
MAX_INCOMPATIBILITIES = 10

#: Another process writes the log; the log cannot be written at all; the machine told us to leave (as shells have it).
EXIT_LOG_HELD, EXIT_LOG_UNWRITABLE, EXIT_TERMINATED = 75, 74, 143


def load_engine(name: str) -> Engine:
    """`"trl"`, or `"scripted"`; torch and its kin are imported with the former alone."""
    if name == "scripted":
        return ScriptedEngine()
    engine: Engine = importlib.import_module("arkor.backend.training.trl_engine").TrlEngine()
    return engine


def outcome(run: Run, recorder: LogRecorder, engine: str, stop_signal: StopSignal) -> Event:
    """Train, and return the event that ends the run, whatever happens."""
    try:
        with stop_signal.interruptible():
            metrics = load_engine(engine).train(run, recorder)
    except StopRequested:
        return recorder.cancelled()
    except (RunError, InvalidConfig) as error:
        sentence = str(error)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever an engine raises ends as a sentence
        with contextlib.suppress(OSError):
            traceback.print_exc()
        sentence = _sentence(error, run.folder)
    else:
        return recorder.cancelled() if recorder.stopping else recorder.completed(metrics)
    return recorder.cancelled() if recorder.stopping else recorder.failed(sentence)


def _sentence(error: BaseException, folder: Path) -> str:
    problem = disk_problem(error)
    if problem:
        path = getattr(error, "filename", None) or folder
        return f"{path} could not be written: {problem}. Make room there and submit the run again."
    if isinstance(error, MemoryError):
        return "The memory was not enough. A smaller batch_size or max_length needs less."
    return f"{type(error).__name__}: {error} (the whole story is in {folder / 'worker.log'})"


def run_worker(folder: RunFolder, home: Path, engine: str) -> int:
    """The run of this folder from where it stands to its terminal event; returns the exit code."""
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
        _log(f"The run cannot go on, and its log {folder.events} cannot be written: {problem}. Make room there.")
        return EXIT_LOG_UNWRITABLE


def _run_to_end(folder: RunFolder, home: Path, engine: str, log: LogWriter, stop_signal: StopSignal) -> int:
    """From the last checkpoint on if there is one; returns the exit code. Raises OSError for an unwritable log."""
    write_atomically(folder.pid, str(os.getpid()))
    resume_point = read_resume_point(folder)
    checkpoints.remove_leftovers(folder, resume_point.saved)
    step = checkpoints.resume_step(folder, resume_point.saved)
    config_data = folder.read_job()["config"]
    recorder = LogRecorder(
        log, folder, notifier_file(home), stop_signal, resume_point, estimate=load_estimate(home, config_data)
    )
    recorder.prune_checkpoints(max_kept_checkpoints())  # the worker before this one may have died over it
    recorder.preparing("Starting")
    config = from_wire(JobConfig, config_data)
    if not resume_point.started:
        for sentence in incompatibilities(config):
            recorder.warn(sentence)
    checkpoint = folder.checkpoint(step) if step is not None else None
    run = Run(folder.id, config, folder.path, home, folder.blob_token(), checkpoint)
    final_event = outcome(run, recorder, engine, stop_signal)
    if isinstance(final_event, TrainingCancelled) and not folder.cancelled.exists():
        return EXIT_TERMINATED
    recorder.write(final_event, sync=True)
    with contextlib.suppress(OSError):
        folder.clear_worker_files()
        if isinstance(final_event, TrainingCompleted):
            recorder.drop_training_states()
    return 0


def incompatibilities(config: JobConfig) -> list[str]:
    """A sentence for each of the first fields of the configuration that nobody here knows; they change nothing."""
    found = [*_unknown_fields("config", config), *_unknown_fields("config.datasetSource", config.dataset_source)]
    omitted = len(found) - MAX_INCOMPATIBILITIES
    last = [f"Nor does this backend know {omitted} other fields of the config."] if omitted > 0 else []
    return [*found[:MAX_INCOMPATIBILITIES], *last]


def _unknown_fields(path: str, value: Any) -> Iterator[str]:
    fields = attrs.fields(type(value)) if attrs.has(type(value)) else ()
    known = [camel_case(item.name) for item in fields if item.init and item.name != "extra"]
    for name in getattr(value, "extra", ()):
        suggestions = difflib.get_close_matches(name[:80], known, n=1)
        hint = f"Did you mean {suggestions[0]}?" if suggestions else "It changes nothing here."
        yield f"{path}.{name[:80]} is no field that this backend knows. {hint}"


def _log(sentence: str) -> None:
    """To whoever reads the worker's log, if that can be written."""
    with contextlib.suppress(OSError):
        print(sentence, file=sys.stderr, flush=True)  # noqa: T201


def main() -> int:
    """Read the command line and play the run."""
    parser = argparse.ArgumentParser(prog="python -m arkor.backend.workers.worker", description="Work on one run.")
    parser.add_argument("run", type=Path, metavar="RUN_DIR")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--engine", choices=["trl", "scripted"], default="trl")
    options = parser.parse_args()
    faulthandler.enable()
    return run_worker(RunFolder(options.run.absolute()), options.home.absolute(), options.engine)


if __name__ == "__main__":
    code = main()
    if code == EXIT_LOG_UNWRITABLE:  # Python would write what is left to be written, fail, and exit with 120
        os._exit(code)
    sys.exit(code)
