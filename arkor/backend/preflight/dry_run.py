"""A run up to a few of its steps, to find out beforehand what is wrong with it, what it learns from, what it will take.

The stages are those of `backend/training/trl_engine.py`, the steps the run's own: same rows in the same order, same
computation. What is found is told bit by bit, in the fields of `checks.Check`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import evolve, field, frozen

from arkor.backend.compute.device import Device, choose_device
from arkor.backend.compute.process_tuning import prepare_to_compute
from arkor.backend.data.file_readers import DataError
from arkor.backend.engine.hyperparameters import Hyperparameters, check_names, resolve_hyperparameters
from arkor.backend.engine.interface import Run
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
    training_arguments,
)
from arkor.protocol.codec import to_wire

#: So many faults of the data are told one by one.
MAX_FAULTS_REPORTED = 1000


@frozen
class NullRecorder:
    """The recorder of a run of which nothing is kept; only `preparing` goes anywhere."""

    report: Callable[[str], None]
    stopping: bool = False

    def preparing(self, message: str) -> None:
        self.report(message)

    def started(self, total_steps: int) -> None:
        """Nobody waits for it."""

    def log(self, step: int, **numbers: float | None) -> None:
        """Nobody looks at them."""

    def checkpoint(self, step: int, write: Callable[[Path], None]) -> None:
        """It is not kept."""

    def final(self, write: Callable[[Path], None]) -> None:
        """It is not kept."""


@frozen
class DryRun:
    """Finds out everything that can be found out of a run.

    `emit` gets it bit by bit, as `arkor.backend.preflight.process` tells it. `busy`: another run trains meanwhile.
    """

    emit: Emit
    busy: bool = False
    _began: float = field(factory=time.perf_counter)

    def dry_run(self, run: Run) -> None:
        """Raises `RunError` and `InvalidConfig` for a configuration that cannot be trained; faults of data are told."""
        check_names(run.config)
        prepare_to_compute()
        with silence_libraries():
            device = choose_device()
            self.emit({"device": device.kind})
            check_device(run.config, device)
            try:
                self._inspect_data(run, device)
            except DataError as error:
                self._emit(data_problems(error))

    def _report_status(self, message: str) -> None:
        self.emit({"say": message})

    def _emit(self, report: dict[str, Any]) -> None:
        self.emit({"found": report})

    def _inspect_data(self, run: Run, device: Device) -> None:
        rows = load_run_rows(run, NullRecorder(self._report_status), MAX_FAULTS_REPORTED)
        self._emit(row_counts(rows))
        loaded = load_run_model(run, device, NullRecorder(self._report_status))
        train, evaluation = encode_rows(run.config, rows, loaded, NullRecorder(self._report_status))
        length = max_length_of(run.config, loaded.model)
        held_out = {"evalLengths": length_stats(evaluation, length)} if evaluation else {}
        preview = preview_rows(train, loaded.tokenizer)
        self._emit(to_wire({"preview": preview, "lengths": length_stats(train, length), **held_out}))
        if self.busy and device.kind != "cpu":
            sentence = (
                "A run trains on the GPU, whose memory is not put at risk: check again when it has ended, to know"
            )
            self._emit({"notes": [f"{sentence} how long this one will take."]})
        else:
            self._time_steps(run, device, loaded, (train, evaluation))

    def _time_steps(
        self, run: Run, device: Device, loaded: LoadedModel, examples: tuple[EncodedDataset, EncodedDataset | None]
    ) -> None:
        from arkor.backend.preflight.step_timing import estimate_run  # noqa: PLC0415 - torch comes after `prepare_to_compute`

        self._report_status("Timing a few steps")
        numbers = resolve_hyperparameters(run.config, len(examples[0]), evaluates=examples[1] is not None)
        arguments = {"output_dir": str(run.folder), **training_arguments(_steps_only(numbers), device)}
        trainer = build_trainer(
            loaded, arguments, device, examples, numbers=numbers, recorder=NullRecorder(self._report_status)
        )
        preparing = round(time.perf_counter() - self._began, 1)
        found = estimate_run(trainer, numbers, device, run.folder)
        self._emit({"estimate": to_wire(evolve(found, preparing_seconds=preparing, busy=self.busy or found.busy))})


def _steps_only(numbers: Hyperparameters) -> Hyperparameters:
    """The same steps without evaluations and checkpoints between them."""
    return evolve(numbers, eval_steps=None, save_steps=numbers.total_steps + 1)
