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
from arkor.backend.compute.process_tuning import other_process_cpu_seconds, peak_memory_bytes
from arkor.backend.engine.hyperparameters import Hyperparameters
from arkor.backend.runs import checkpoints
from arkor.backend.training.collation import MicroBatch
from arkor.backend.training.sft_trainer import Collator
from arkor.protocol.estimates import Estimate

#: Steps are timed for so many seconds, but never fewer than the one number, nor more than the other.
TIMED_SECONDS, MIN_STEPS, MAX_STEPS = 12.0, 5, 40

#: So many batches of those to come are looked at, for so many seconds at most, to see how the timed ones compare.
MAX_BATCHES_AHEAD, MAX_SECONDS_AHEAD = 200, 3.0

#: What others compute beside a check counts from this share of what its own threads could compute.
CONTENTION_SHARE = 0.1

#: So long is evaluated, in seconds.
EVALUATED_SECONDS = 4.0


def estimate_run(trainer: Any, numbers: Hyperparameters, device: Device, folder: Path) -> Estimate:
    """Take a few steps, and judge by them what the run of `numbers` will take.

    `folder` is for what is to be thrown away. The trainer must not save or evaluate by itself: both are timed apart
    from the steps.
    """
    collator = trainer.data_collator = CountingCollator(trainer.data_collator)
    trainer.verify_flat_batches(trainer.train_dataset[: numbers.batch_size])
    collator.token_counts.clear()
    timer = StepTimer(torch.cuda.synchronize if device.kind == "cuda" else _no_sync)
    trainer.add_callback(timer)
    contention = CpuContention()
    began = time.perf_counter()
    trainer.run_training()
    busy = contention.is_significant()
    first, *others = timer.step_seconds()
    timed = others or [first]
    token_counts = collator.token_counts[: len(others) + 1][-len(timed) :]
    step = (
        fmean(timed) * fmean(_remaining_token_counts(trainer) or token_counts) / fmean(token_counts)
    )  # as those to come may have more tokens
    opening = timer.marks[0] - began + max(0.0, first - step)
    between = _evaluation_seconds(trainer, numbers) + _checkpoint_seconds(trainer, numbers, folder)
    return Estimate(
        steps=numbers.total_steps,
        seconds=round(opening + numbers.total_steps * step + between, 3),
        step_seconds=round(step, 4),
        memory_bytes=peak_memory_bytes(),
        device_memory_bytes=torch.cuda.max_memory_reserved() if device.kind == "cuda" else None,
        timed_steps=len(others) + 1,
        device=device.description,
        busy=busy,
    )


def _no_sync() -> None:
    """What a processor needs in order to be done: it is."""


class CpuContention:
    """What others compute on this machine from now on."""

    def __init__(self) -> None:
        self._baseline = self._sample()

    def is_significant(self) -> bool:
        """Whether they took some that our threads wanted, and not only for the moments that a system needs."""
        since = (now - before for now, before in zip(self._sample(), self._baseline, strict=True))
        seconds, computed, preemptions, others = since
        wanted = seconds * torch.get_num_threads()
        return is_crowded(wanted, computed, int(preemptions)) and others > CONTENTION_SHARE * wanted

    @staticmethod
    def _sample() -> tuple[float, float, int, float]:
        return time.perf_counter(), time.process_time(), preemptions_so_far(), other_process_cpu_seconds()


class CountingCollator(Collator):
    """The collator of the run, which notes how many tokens the model is given with each batch."""

    def __init__(self, collator: Collator) -> None:
        self.__dict__.update(collator.__dict__)
        self.token_counts: list[int] = []

    def __call__(self, examples: Any, *, flat: bool | None = None) -> dict[str, Any]:
        batch = super().__call__(examples, flat=flat)
        self.token_counts.append(count_tokens(batch["pieces"]))
        return batch


def count_tokens(micro_batches: Iterable[MicroBatch]) -> int:
    """How many tokens the model is given, padding included."""
    return sum(micro_batch.model_inputs["input_ids"].numel() for micro_batch in micro_batches)


@define
class StepTimer(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Notes when steps begin and end, and ends the loop when they are enough. Times are of `time.perf_counter()`."""

    synchronize: Callable[[], None]
    marks: list[float] = field(factory=list)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 - the signature is theirs
        if not self.marks:
            self.marks.append(time.perf_counter())

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 - as above
        self.synchronize()
        self.marks.append(time.perf_counter())
        steps = len(self.marks) - 1
        enough = steps >= MIN_STEPS and self.marks[-1] - self.marks[0] >= TIMED_SECONDS
        control.should_training_stop |= enough or steps >= MAX_STEPS

    def step_seconds(self) -> list[float]:
        """Of each step."""
        return [after - before for before, after in itertools.pairwise(self.marks)]


def _remaining_token_counts(trainer: Any) -> list[int]:
    """The tokens of the run's batches; the heaviest goes through the model once, for what memory it takes."""
    token_counts: list[int] = []
    largest: Any = None
    deadline = time.perf_counter() + MAX_SECONDS_AHEAD
    for batch in itertools.islice(trainer.get_train_dataloader(), MAX_BATCHES_AHEAD):
        token_counts.append(count_tokens(batch["pieces"]))
        if largest is None or token_counts[-1] > count_tokens(largest["pieces"]):
            largest = batch
        if time.perf_counter() > deadline:
            break
    if largest is not None:
        trainer.training_step(trainer.model, largest)
        trainer.model.zero_grad()
    return token_counts


def _evaluation_seconds(trainer: Any, numbers: Hyperparameters) -> float:
    """The seconds of all evaluations of the run: some batches are evaluated, all are weighed."""
    if not numbers.eval_steps:
        return 0.0
    trainer.model.eval()
    token_counts, done, seconds = [], 0, 0.0
    began = time.perf_counter()
    with torch.no_grad():
        for batch in trainer.get_eval_dataloader():
            token_counts.append(count_tokens(batch["pieces"]))
            if time.perf_counter() - began > EVALUATED_SECONDS + MAX_SECONDS_AHEAD:
                break
            if time.perf_counter() - began < EVALUATED_SECONDS:
                _ = [trainer.token_losses(micro_batch).sum().item() for micro_batch in batch["pieces"]]
                done, seconds = sum(token_counts), time.perf_counter() - began
    batches = math.ceil(len(trainer.eval_dataset) / numbers.batch_size)
    return seconds / done * fmean(token_counts) * batches * (numbers.total_steps // numbers.eval_steps)


def _checkpoint_seconds(trainer: Any, numbers: Hyperparameters, folder: Path) -> float:
    """The seconds of writing all checkpoints of the run, the one at its end included."""
    began = time.perf_counter()
    checkpoints.write_folder_atomically(folder / "checkpoint", trainer.write_checkpoint)
    return (time.perf_counter() - began) * math.ceil(numbers.total_steps / numbers.save_steps)
