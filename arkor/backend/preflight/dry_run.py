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
from arkor.backend.engine.hyperparameters import Plan, check_names, plan
from arkor.backend.engine.interface import Run
from arkor.backend.preflight.data_report import Line, counts_of, lengths_of, preview_of, problems_of
from arkor.backend.training.tokenization import Encoded
from arkor.backend.training.trl_engine import (
    Learner,
    check_device,
    examples_of,
    learner_of,
    max_length_of,
    quiet,
    rows_of,
    trainer_of,
    training_arguments,
)
from arkor.protocol.codec import to_wire

#: So many faults of the data are told one by one.
FAULTS_TOLD = 1000


@frozen
class Listener:
    """The recorder of a run of which nothing is kept; only `preparing` goes anywhere."""

    say: Callable[[str], None]
    stopping: bool = False

    def preparing(self, message: str) -> None:
        self.say(message)

    def started(self, total_steps: int) -> None:
        """Nobody waits for it."""

    def log(self, step: int, **numbers: float | None) -> None:
        """Nobody looks at them."""

    def checkpoint(self, step: int, write: Callable[[Path], None]) -> None:
        """It is not kept."""

    def final(self, write: Callable[[Path], None]) -> None:
        """It is not kept."""


@frozen
class Rehearsal:
    """Finds out everything that can be found out of a run.

    `out` gets it bit by bit, as `arkor.backend.preflight.process` tells it. `busy`: another run trains meanwhile.
    """

    out: Line
    busy: bool = False
    _began: float = field(factory=time.perf_counter)

    def rehearse(self, run: Run) -> None:
        """Raises `RunError` and `InvalidConfig` for a configuration that cannot be trained; faults of data are told."""
        check_names(run.config)
        prepare_to_compute()
        with quiet():
            device = choose_device()
            self.out({"device": device.kind})
            check_device(run.config, device)
            try:
                self._data(run, device)
            except DataError as error:
                self._tell(problems_of(error))

    def _say(self, message: str) -> None:
        self.out({"say": message})

    def _tell(self, found: dict[str, Any]) -> None:
        self.out({"found": found})

    def _data(self, run: Run, device: Device) -> None:
        rows = rows_of(run, Listener(self._say), FAULTS_TOLD)
        self._tell(counts_of(rows))
        learner = learner_of(run, device, Listener(self._say))
        train, evaluation = examples_of(run.config, rows, learner, Listener(self._say))
        length = max_length_of(run.config, learner.model)
        held_out = {"evalLengths": lengths_of(evaluation, length)} if evaluation else {}
        preview = preview_of(train, learner.tokenizer)
        self._tell(to_wire({"preview": preview, "lengths": lengths_of(train, length), **held_out}))
        if self.busy and device.kind != "cpu":
            sentence = (
                "A run trains on the GPU, whose memory is not put at risk: check again when it has ended, to know"
            )
            self._tell({"notes": [f"{sentence} how long this one will take."]})
        else:
            self._time(run, device, learner, (train, evaluation))

    def _time(self, run: Run, device: Device, learner: Learner, examples: tuple[Encoded, Encoded | None]) -> None:
        from arkor.backend.preflight.step_timing import estimate  # noqa: PLC0415 - torch comes after `prepare_to_compute`

        self._say("Timing a few steps")
        numbers = plan(run.config, len(examples[0]), evaluates=examples[1] is not None)
        arguments = {"output_dir": str(run.folder), **training_arguments(_undisturbed(numbers), device)}
        trainer = trainer_of(learner, arguments, device, examples, numbers=numbers, recorder=Listener(self._say))
        preparing = round(time.perf_counter() - self._began, 1)
        found = estimate(trainer, numbers, device, run.folder)
        self._tell({"estimate": to_wire(evolve(found, preparing_seconds=preparing, busy=self.busy or found.busy))})


def _undisturbed(numbers: Plan) -> Plan:
    """The same steps without evaluations and checkpoints between them."""
    return evolve(numbers, eval_steps=None, save_steps=numbers.total_steps + 1)
