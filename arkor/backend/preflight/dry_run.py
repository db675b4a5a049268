"""Check a run by preparing it and running a few of its steps.

Stages and steps are the same as in `training/trl_engine.py`: same rows, same order, same
computation. Results are sent as soon as they are known, as fields of `Check`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import evolve, field, frozen

from arkor.backend.compute.device import Device, choose_device
from arkor.backend.compute.process_tuning import prepare_to_compute
from arkor.backend.data.faults import DataError
from arkor.backend.engine.hyperparameters import check_names, resolve_hyperparameters, schedule_notes
from arkor.backend.engine.interface import Run, RunError
from arkor.backend.preflight.data_report import Emit, data_problems, length_stats, preview_rows, row_counts
from arkor.backend.training.tokenization import EncodedDataset
from arkor.backend.training.trl_engine import (
    LoadedModel,
    build_trainer,
    check_device,
    encode_rows,
    load_run_model,
    load_run_rows,
    max_length_of,
    silence_libraries,
)
from arkor.backend.workers.scripted_engine import ScriptedEngine
from arkor.protocol.codec import to_wire
from arkor.protocol.datasets import BlobDataset
from arkor.protocol.estimates import Estimate

#: The maximum number of errors in the data that are reported one by one.
MAX_FAULTS_REPORTED = 1000


@frozen
class NullRecorder:
    """A recorder that passes on `preparing` messages and drops everything else."""

    preparing: Callable[[str], None]
    stopping: bool = False

    def started(self, total_steps: int) -> None:
        """Do nothing."""

    def log(self, step: int, **metrics: float | None) -> None:
        """Do nothing."""

    def checkpoint(self, step: int, write: Callable[[Path], None]) -> None:
        """Do nothing."""

    def final(self, write: Callable[[Path], None]) -> None:
        """Do nothing."""


@frozen
class DryRun:
    """Checks a run and emits the results (see `process.py`). `busy`: another run is training."""

    emit: Emit
    busy: bool = False
    _began: float = field(factory=time.perf_counter)

    def check(self, run: Run) -> None:
        """Raise `RunError` or `InvalidConfig` for the configuration; data errors are results."""
        check_names(run.config)
        prepare_to_compute()
        with silence_libraries():
            device = choose_device()
            self.emit({"device": device.kind})
            check_device(run.config, device)
            try:
                self._inspect_data(run, device)
            except DataError as error:
                self._emit_result(data_problems(error))

    def _emit_progress(self, message: str) -> None:
        self.emit({"progress": message})

    def _emit_result(self, fields: dict[str, Any]) -> None:
        self.emit({"found": fields})

    def _inspect_data(self, run: Run, device: Device) -> None:
        recorder = NullRecorder(self._emit_progress)
        rows = load_run_rows(run, recorder, MAX_FAULTS_REPORTED)
        self._emit_result(row_counts(rows))
        loaded = load_run_model(run, device, recorder)
        train, evaluation = encode_rows(run, rows, loaded, recorder, max_faults=MAX_FAULTS_REPORTED)
        length = max_length_of(run.config, loaded.model)
        eval_lengths = {"evalLengths": length_stats(evaluation, length)} if evaluation else {}
        preview = preview_rows(train, loaded.tokenizer)
        notes = [*train.layout_notes("training"), *(evaluation.layout_notes("evaluation") if evaluation else ())]
        self._emit_result({"notes": notes})
        self._emit_result(
            to_wire(
                {"learns": train.learns(), "preview": preview, "lengths": length_stats(train, length), **eval_lengths}
            )
        )
        if self.busy and device.kind != "cpu":
            note = (
                "The time was not measured, because another run is training on the GPU; check again when it has ended."
            )
            self._emit_result({"notes": [note]})
        else:
            self._time_steps(run, device, loaded, (train, evaluation))

    def _time_steps(
        self, run: Run, device: Device, loaded: LoadedModel, examples: tuple[EncodedDataset, EncodedDataset | None]
    ) -> None:
        from arkor.backend.preflight.step_timing import estimate_run  # noqa: PLC0415 - after `prepare_to_compute`

        self._emit_progress("Timing a few steps")
        hyperparameters = resolve_hyperparameters(run.config, len(examples[0]), evaluates=examples[1] is not None)
        self._emit_result({"notes": list(schedule_notes(hyperparameters))})
        steps_only = evolve(hyperparameters, eval_steps=None, save_steps=hyperparameters.total_steps + 1)
        trainer = build_trainer(run.folder, loaded, device, examples, steps_only, NullRecorder(self._emit_progress))
        preparing = round(time.perf_counter() - self._began, 1)
        estimate = estimate_run(trainer, hyperparameters, device, run.folder)
        busy = self.busy or estimate.busy
        self._emit_result({"estimate": to_wire(evolve(estimate, preparing_seconds=preparing, busy=busy))})


@frozen
class ScriptedDryRun:
    """Checks the rows and the time of a run of the scripted engine, which has no tokens."""

    emit: Emit
    busy: bool

    def check(self, run: Run) -> None:
        """See `DryRun.check`."""
        config = run.config
        if config.model == "scripted/fail":
            raise RunError("This model fails by design; name another one.")
        self.emit({"device": "cpu"})
        if isinstance(config.dataset_source, BlobDataset):
            try:
                rows = load_run_rows(run, NullRecorder(lambda message: self.emit({"progress": message})))
            except DataError as error:
                self.emit({"found": data_problems(error)})
                return
            self.emit({"found": row_counts(rows)})
        steps, seconds = config.max_steps or 10, ScriptedEngine().step_seconds
        estimate = Estimate(steps, round(steps * seconds, 3), seconds, device="paper", busy=self.busy)
        self.emit({"found": {"estimate": to_wire(estimate)}})
