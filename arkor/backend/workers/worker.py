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
from arkor.backend.runs.estimate_cache import expected
from arkor.backend.runs.event_log import LogHeld, LogWriter
from arkor.backend.runs.log_queries import read_past
from arkor.backend.runs.paths import RunFolder, bell_file, write_atomically
from arkor.backend.workers.heartbeat import beating
from arkor.backend.workers.recorder import LogRecorder, disk_trouble
from arkor.backend.workers.scripted_engine import ScriptedEngine
from arkor.backend.workers.stop_signal import Stopped, StopSign
from arkor.errors import InvalidConfig
from arkor.protocol.codec import camel, from_wire
from arkor.protocol.events import Event, TrainingCancelled, TrainingCompleted
from arkor.protocol.jobs import JobConfig
from arkor.settings import checkpoints_kept

#: How many fields that nobody knows are named.
MOST_DOUBTS = 10

#: Another process writes the log; the log cannot be written at all; the machine told us to leave (as shells have it).
EXIT_LOG_HELD, EXIT_LOG_UNWRITABLE, EXIT_TERMINATED = 75, 74, 143


def load_engine(name: str) -> Engine:
    """`"trl"`, or `"scripted"`; torch and its kin are imported with the former alone."""
    if name == "scripted":
        return ScriptedEngine()
    engine: Engine = importlib.import_module("arkor.backend.training.trl_engine").TrlEngine()
    return engine


def outcome(run: Run, recorder: LogRecorder, engine: str, stop: StopSign) -> Event:
    """Train, and return the event that ends the run, whatever happens."""
    try:
        with stop.breaking_off():
            metrics = load_engine(engine).train(run, recorder)
    except Stopped:
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
    trouble = disk_trouble(error)
    if trouble:
        where = getattr(error, "filename", None) or folder
        return f"{where} could not be written: {trouble}. Make room there and submit the run again."
    if isinstance(error, MemoryError):
        return "The memory was not enough. A smaller batch_size or max_length needs less."
    return f"{type(error).__name__}: {error} (the whole story is in {folder / 'worker.log'})"


def play(folder: RunFolder, home: Path, engine: str) -> int:
    """The run of this folder from where it stands to its terminal event; returns the exit code."""
    stop = StopSign()
    stop.watch()
    try:
        with LogWriter(folder.events) as log, beating(folder.pid):
            return 0 if log.tail.terminal else _see_through(folder, home, engine, log, stop)
    except LogHeld:
        _say(f"{folder.events} is being written by another worker")
        return EXIT_LOG_HELD
    except OSError as error:
        trouble = disk_trouble(error) or str(error)
        _say(f"The run cannot go on, and its log {folder.events} cannot be written: {trouble}. Make room there.")
        return EXIT_LOG_UNWRITABLE


def _see_through(folder: RunFolder, home: Path, engine: str, log: LogWriter, stop: StopSign) -> int:
    """From the last checkpoint on if there is one; returns the exit code. Raises OSError for an unwritable log."""
    write_atomically(folder.pid, str(os.getpid()))
    past = read_past(folder)
    checkpoints.sweep(folder, past.saved)
    step = checkpoints.resume_step(folder, past.saved)
    asked = folder.read_job()["config"]
    recorder = LogRecorder(log, folder, bell_file(home), stop, past, estimate=expected(home, asked))
    recorder.thin_out(checkpoints_kept())  # the worker before this one may have died over it
    recorder.preparing("Starting")
    config = from_wire(JobConfig, asked)
    if not past.started:
        for sentence in doubts(config):
            recorder.warn(sentence)
    checkpoint = folder.checkpoint(step) if step is not None else None
    run = Run(folder.id, config, folder.path, home, folder.blob_token(), checkpoint)
    end = outcome(run, recorder, engine, stop)
    if isinstance(end, TrainingCancelled) and not folder.cancelled.exists():
        return EXIT_TERMINATED
    recorder.write(end, sync=True)
    with contextlib.suppress(OSError):
        folder.forget_worker()
        if isinstance(end, TrainingCompleted):
            recorder.forget_states()
    return 0


def doubts(config: JobConfig) -> list[str]:
    """A sentence for each of the first fields of the configuration that nobody here knows; they change nothing."""
    found = [*_unknown("config", config), *_unknown("config.datasetSource", config.dataset_source)]
    rest = len(found) - MOST_DOUBTS
    last = [f"Nor does this backend know {rest} other fields of the config."] if rest > 0 else []
    return [*found[:MOST_DOUBTS], *last]


def _unknown(where: str, thing: Any) -> Iterator[str]:
    fields = attrs.fields(type(thing)) if attrs.has(type(thing)) else ()
    known = [camel(item.name) for item in fields if item.init and item.name != "extra"]
    for name in getattr(thing, "extra", ()):
        near = difflib.get_close_matches(name[:80], known, n=1)
        hint = f"Did you mean {near[0]}?" if near else "It changes nothing here."
        yield f"{where}.{name[:80]} is no field that this backend knows. {hint}"


def _say(sentence: str) -> None:
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
    return play(RunFolder(options.run.absolute()), options.home.absolute(), options.engine)


if __name__ == "__main__":
    code = main()
    if code == EXIT_LOG_UNWRITABLE:  # Python would write what is left to be written, fail, and exit with 120
        os._exit(code)
    sys.exit(code)
