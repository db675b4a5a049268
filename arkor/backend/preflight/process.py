"""Child process that checks a run by preparing it and running a few of its steps.

    python -m arkor.backend.preflight.process --home DIR --engine trl|scripted

It reads one line from stdin: `{"config": {…}, "token": …, "folder": …, "busy": …}`. It writes JSON
objects to stdout, one a line: `{"progress"}`, `{"device"}`, `{"found": {…}}` (fields of
`Check`), and at the end `{"done": true}` or `{"refused": message}`. Stages and steps are the same
as in `training/trl_engine.py`: same rows, same order, same computation.

It exits when stdin ends. Runs have precedence over it for memory, and if `busy` (another run is
training) for CPU time.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import evolve, frozen

from arkor.backend.compute.child_process import ParentConnection, parse_options
from arkor.backend.compute.device import choose_device
from arkor.backend.compute.process_tuning import NICENESS, prefer_oom_kill, prepare_to_compute
from arkor.backend.data.faults import DataError
from arkor.backend.engine.hyperparameters import check_names, resolve_hyperparameters, schedule_notes
from arkor.backend.engine.interface import Recorder, Run, RunError
from arkor.backend.preflight.data_report import data_problems, length_stats, preview_rows, row_counts
from arkor.backend.training import trl_engine
from arkor.backend.workers.scripted_engine import ScriptedEngine
from arkor.errors import InvalidConfig
from arkor.protocol.codec import from_wire, to_wire
from arkor.protocol.datasets import BlobDataset
from arkor.protocol.estimates import Estimate
from arkor.protocol.jobs import JobConfig

#: The maximum number of errors in the data that are reported one by one.
MAX_FAULTS_REPORTED = 1000

#: Sends one message of the check, a JSON object.
Emit = Callable[[dict[str, Any]], None]


def run_check(request: dict[str, Any], home: Path, engine: str, emit: Emit) -> None:
    """Check a run and send all results as soon as they are known; errors in the data are results."""
    try:
        config, folder = from_wire(JobConfig, request["config"]), Path(request["folder"])
        run = Run("check", config, folder, home, request.get("token"))
        (_check_scripted if engine == "scripted" else _check)(run, emit, busy=request["busy"])
    except DataError as error:
        emit({"found": data_problems(error)})
    except (RunError, InvalidConfig) as error:
        emit({"refused": str(error)})
        return
    except MemoryError:
        problem = "There was not enough memory. A smaller batch_size or max_length needs less."
        emit({"found": {"problems": [problem]}})
    emit({"done": True})


@frozen
class _PreparationRecorder(Recorder):
    """Passes on the messages of the preparation."""

    emit: Emit

    def preparing(self, message: str) -> None:
        self.emit({"progress": message})


def _check(run: Run, emit: Emit, *, busy: bool) -> None:
    """Check a run of the TRL engine. Raise `RunError` or `InvalidConfig`."""
    began, recorder = time.perf_counter(), _PreparationRecorder(emit)
    check_names(run.config)
    prepare_to_compute()
    with trl_engine.silence_libraries():
        device = choose_device()
        emit({"device": device.kind})
        trl_engine.check_device(run.config, device)
        rows = trl_engine.load_run_rows(run, recorder, MAX_FAULTS_REPORTED)
        emit({"found": row_counts(rows)})
        loaded = trl_engine.load_run_model(run, device, recorder)
        emit({"found": {"notes": [str(loaded.targets)]}})
        train, evaluation = trl_engine.encode_rows(run, rows, loaded, recorder, max_faults=MAX_FAULTS_REPORTED)
        length = trl_engine.max_length_of(run.config, loaded.model)
        notes = [*train.layout_notes("training"), *(evaluation.layout_notes("evaluation") if evaluation else ())]
        found: dict[str, Any] = {
            "notes": notes,
            "learns": train.learns(),
            "preview": preview_rows(train, loaded.tokenizer),
            "lengths": length_stats(train, length),
        }
        if evaluation:
            found["evalLengths"] = length_stats(evaluation, length)
        emit({"found": to_wire(found)})
        if busy and device.kind != "cpu":
            note = (
                "The time was not measured, because another run is training on the GPU; check again when it has ended."
            )
            emit({"found": {"notes": [note]}})
            return
        from arkor.backend.preflight.step_timing import estimate_run  # noqa: PLC0415 - after `prepare_to_compute`

        recorder.preparing("Timing a few steps")
        hyperparameters = resolve_hyperparameters(run.config, len(train), evaluates=evaluation is not None)
        emit({"found": {"notes": list(schedule_notes(hyperparameters))}})
        steps_only = evolve(hyperparameters, eval_steps=None, save_steps=hyperparameters.total_steps + 1)
        trainer = trl_engine.build_trainer(run.folder, loaded, device, (train, evaluation), steps_only, recorder)
        preparing = round(time.perf_counter() - began, 1)
        estimate = estimate_run(trainer, hyperparameters, device, run.folder)
        emit({"found": {"notes": [str(trainer.data_collator.layout)]}})
        estimate = evolve(estimate, preparing_seconds=preparing, busy=busy or estimate.busy)
        emit({"found": {"estimate": to_wire(estimate)}})


def _check_scripted(run: Run, emit: Emit, *, busy: bool) -> None:
    """Check the rows and the time of a run of the scripted engine, which has no tokens."""
    config = run.config
    if config.model == "scripted/fail":
        raise RunError("This model fails by design; name another one.")
    emit({"device": "cpu"})
    if isinstance(config.dataset_source, BlobDataset):
        emit({"found": row_counts(trl_engine.load_run_rows(run, _PreparationRecorder(emit)))})
    steps, seconds = config.max_steps or 10, ScriptedEngine().step_seconds
    estimate = Estimate(steps, round(steps * seconds, 3), seconds, device="paper", busy=busy)
    emit({"found": {"estimate": to_wire(estimate)}})


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
