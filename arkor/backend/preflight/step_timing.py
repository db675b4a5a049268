"""A trainer that is ready → how long its run will take, and how much memory, by a few of its steps.

What it is ready with, and what else is found out beforehand, is the business of `dry_run.py`.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from attrs import define, field
from transformers import TrainerCallback

from arkor.backend.compute.cpu_threads import is_crowded, preemptions_so_far
from arkor.backend.compute.device import Device
from arkor.backend.compute.process_tuning import peak_memory_bytes, seconds_of_others
from arkor.backend.engine.hyperparameters import Plan
from arkor.backend.runs import checkpoints
from arkor.backend.training.collation import Piece
from arkor.backend.training.sft_trainer import Collator
from arkor.protocol.estimates import Estimate

#: Steps are timed for so many seconds, but never fewer than the one number, nor more than the other.
TIMED_SECONDS, FEWEST_STEPS, MOST_STEPS = 12.0, 5, 40

#: So many batches of those to come are looked at, for so many seconds at most, to see how the timed ones compare.
BATCHES_AHEAD, SECONDS_AHEAD = 200, 3.0

#: What others compute beside a check counts from this share of what its own threads could compute.
OTHERS_SHARE = 0.1

#: So long is evaluated, in seconds.
EVALUATED_SECONDS = 4.0


def estimate(trainer: Any, numbers: Plan, device: Device, folder: Path) -> Estimate:
    """Take a few steps, and judge by them what the run of `numbers` will take.

    `folder` is for what is to be thrown away. The trainer must not save or evaluate by itself: both are timed apart
    from the steps.
    """
    collator = trainer.data_collator = Weighing(trainer.data_collator)
    trainer.trust_flat(trainer.train_dataset[: numbers.batch_size])
    collator.works.clear()
    watch = Watch(torch.cuda.synchronize if device.kind == "cuda" else _nothing)
    trainer.add_callback(watch)
    company = Company()
    began = time.perf_counter()
    trainer.learn()
    busy = company.took_cores()
    first, *others = watch.seconds()
    timed = others or [first]
    works = collator.works[: len(others) + 1][-len(timed) :]
    step = fmean(timed) * fmean(_ahead(trainer) or works) / fmean(works)  # as those to come may have more tokens
    opening = watch.marks[0] - began + max(0.0, first - step)
    between = _evaluations(trainer, numbers) + _checkpoints(trainer, numbers, folder)
    return Estimate(
        steps=numbers.total_steps,
        seconds=round(opening + numbers.total_steps * step + between, 3),
        step_seconds=round(step, 4),
        memory_bytes=peak_memory_bytes(),
        device_memory_bytes=torch.cuda.max_memory_reserved() if device.kind == "cuda" else None,
        timed_steps=len(others) + 1,
        device=device.words,
        busy=busy,
    )


def _nothing() -> None:
    """What a processor needs in order to be done: it is."""


class Company:
    """What others compute on this machine from now on."""

    def __init__(self) -> None:
        self._began = self._now()

    def took_cores(self) -> bool:
        """Whether they took some that our threads wanted, and not only for the moments that a system needs."""
        since = (now - before for now, before in zip(self._now(), self._began, strict=True))
        seconds, computed, preemptions, others = since
        wanted = seconds * torch.get_num_threads()
        return is_crowded(wanted, computed, int(preemptions)) and others > OTHERS_SHARE * wanted

    @staticmethod
    def _now() -> tuple[float, float, int, float]:
        return time.perf_counter(), time.process_time(), preemptions_so_far(), seconds_of_others()


class Weighing(Collator):
    """The collator of the run, which notes how many tokens the model is given with each batch."""

    def __init__(self, collator: Collator) -> None:
        self.__dict__.update(collator.__dict__)
        self.works: list[int] = []

    def __call__(self, examples: Any, *, flat: bool | None = None) -> dict[str, Any]:
        batch = super().__call__(examples, flat=flat)
        self.works.append(work_of(batch["pieces"]))
        return batch


def work_of(parts: Iterable[Piece]) -> int:
    """How many tokens the model is given, padding included."""
    return sum(part.model_inputs["input_ids"].numel() for part in parts)


@define
class Watch(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Notes when steps begin and end, and ends the loop when they are enough. Times are of `time.perf_counter()`."""

    synchronise: Callable[[], None]
    marks: list[float] = field(factory=list)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 - the signature is theirs
        if not self.marks:
            self.marks.append(time.perf_counter())

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 - as above
        self.synchronise()
        self.marks.append(time.perf_counter())
        steps = len(self.marks) - 1
        enough = steps >= FEWEST_STEPS and self.marks[-1] - self.marks[0] >= TIMED_SECONDS
        control.should_training_stop |= enough or steps >= MOST_STEPS

    def seconds(self) -> list[float]:
        """Of each step."""
        return [after - before for before, after in itertools.pairwise(self.marks)]


def _ahead(trainer: Any) -> list[int]:
    """The tokens of the run's batches; the heaviest goes through the model once, for what memory it takes."""
    works: list[int] = []
    heaviest: Any = None
    until = time.perf_counter() + SECONDS_AHEAD
    for batch in itertools.islice(trainer.get_train_dataloader(), BATCHES_AHEAD):
        works.append(work_of(batch["pieces"]))
        if heaviest is None or works[-1] > work_of(heaviest["pieces"]):
            heaviest = batch
        if time.perf_counter() > until:
            break
    if heaviest is not None:
        trainer.training_step(trainer.model, heaviest)
        trainer.model.zero_grad()
    return works


def _evaluations(trainer: Any, numbers: Plan) -> float:
    """The seconds of all evaluations of the run: some batches are evaluated, all are weighed."""
    if not numbers.eval_steps:
        return 0.0
    trainer.model.eval()
    works, done, seconds = [], 0, 0.0
    began = time.perf_counter()
    with torch.no_grad():
        for batch in trainer.get_eval_dataloader():
            works.append(work_of(batch["pieces"]))
            if time.perf_counter() - began > EVALUATED_SECONDS + SECONDS_AHEAD:
                break
            if time.perf_counter() - began < EVALUATED_SECONDS:
                _ = [trainer.token_losses(piece).sum().item() for piece in batch["pieces"]]
                done, seconds = sum(works), time.perf_counter() - began
    batches = math.ceil(len(trainer.eval_dataset) / numbers.batch_size)
    return seconds / done * fmean(works) * batches * (numbers.total_steps // numbers.eval_steps)


def _checkpoints(trainer: Any, numbers: Plan, folder: Path) -> float:
    """The seconds of writing all checkpoints of the run, the one at its end included."""
    began = time.perf_counter()
    checkpoints.write_whole(folder / "checkpoint", trainer.write_checkpoint)
    return (time.perf_counter() - began) * math.ceil(numbers.total_steps / numbers.save_steps)
