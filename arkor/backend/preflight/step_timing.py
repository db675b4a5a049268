"""Estimate the time and memory of a run from a few of its steps."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from attrs import define, field, frozen
from transformers import TrainerCallback

from arkor.backend.compute.device import Device
from arkor.backend.compute.process_tuning import (
    is_crowded,
    other_process_cpu_seconds,
    peak_memory_bytes,
    preemptions_so_far,
)
from arkor.backend.engine.hyperparameters import Hyperparameters
from arkor.backend.runs import checkpoints
from arkor.backend.training.collation import MicroBatch
from arkor.protocol.estimates import Estimate

#: Seconds for which steps are timed, and the minimum and maximum number of steps.
TIMED_SECONDS, MIN_STEPS, MAX_STEPS = 12.0, 5, 40

#: Limits for counting the tokens of further batches, which may be longer than the timed ones:
#: batches, seconds.
MAX_BATCHES_AHEAD, MAX_SECONDS_AHEAD = 200, 3.0

#: Other processes count as a disturbance if they use more than this share of the CPU time of our
#: threads.
CONTENTION_SHARE = 0.1

#: Seconds for which evaluation batches are timed.
EVALUATED_SECONDS = 4.0


def estimate_run(trainer: Any, hyperparameters: Hyperparameters, device: Device, folder: Path) -> Estimate:
    """Run a few steps of `trainer` and estimate the run; temporary files go to `folder`.

    The trainer must be configured without evaluations and checkpoints, which are timed separately.
    """
    trainer.choose_layout()
    collator = trainer.data_collator
    counter = trainer.data_collator = TokenCounter(collator)
    timer = StepTimer(torch.cuda.synchronize if device.kind == "cuda" else lambda: None)
    trainer.add_callback(timer)
    contention = CpuContention()
    began = time.perf_counter()
    trainer.run_training()
    trainer.data_collator = collator
    busy = contention.is_significant()
    first, *others = (after - before for before, after in itertools.pairwise(timer.marks))
    timed = others or [first]  # the first step is slower
    token_counts = counter.token_counts[: len(others) + 1][-len(timed) :]
    # scale to the tokens of the batches ahead
    step = fmean(timed) * fmean(_token_counts_ahead(trainer) or token_counts) / fmean(token_counts)
    startup = timer.marks[0] - began + max(0.0, first - step)
    between = _evaluation_seconds(trainer, hyperparameters) + _checkpoint_seconds(trainer, hyperparameters, folder)
    return Estimate(
        steps=hyperparameters.total_steps,
        seconds=round(startup + hyperparameters.total_steps * step + between, 3),
        step_seconds=round(step, 4),
        memory_bytes=peak_memory_bytes(),
        device_memory_bytes=torch.cuda.max_memory_reserved() if device.kind == "cuda" else None,
        timed_steps=len(others) + 1,
        device=device.description,
        busy=busy,
    )


class CpuContention:
    """Measures what other processes compute on this machine, from its creation on."""

    def __init__(self) -> None:
        self._baseline = self._sample()

    def is_significant(self) -> bool:
        """Whether other processes took cores away from our threads for more than moments."""
        since = (now - before for now, before in zip(self._sample(), self._baseline, strict=True))
        seconds, computed, preemptions, others = since
        wanted = seconds * torch.get_num_threads()
        return is_crowded(wanted, computed, int(preemptions)) and others > CONTENTION_SHARE * wanted

    @staticmethod
    def _sample() -> tuple[float, float, int, float]:
        return time.perf_counter(), time.process_time(), preemptions_so_far(), other_process_cpu_seconds()


@frozen
class TokenCounter:
    """A collator that records the number of tokens of each batch."""

    collate: Callable[[Sequence[dict[str, Any]]], dict[str, Any]]
    token_counts: list[int] = field(factory=list)

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collate(examples)
        self.token_counts.append(count_tokens(batch["micro_batches"]))
        return batch


def count_tokens(micro_batches: Iterable[MicroBatch]) -> int:
    """Return the number of tokens that are computed, including padding."""
    return sum(micro_batch.model_inputs["input_ids"].numel() for micro_batch in micro_batches)


@define
class StepTimer(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Records when steps begin and end, in seconds; ends the loop after enough steps."""

    synchronize: Callable[[], None]
    marks: list[float] = field(factory=list)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 - signature of transformers
        if not self.marks:
            self.marks.append(time.perf_counter())

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 - as above
        self.synchronize()
        self.marks.append(time.perf_counter())
        steps = len(self.marks) - 1
        enough = steps >= MIN_STEPS and self.marks[-1] - self.marks[0] >= TIMED_SECONDS
        control.should_training_stop |= enough or steps >= MAX_STEPS


def _token_counts_ahead(trainer: Any) -> list[int]:
    """Count the tokens of the run's batches, and run the largest one once for its peak memory."""
    token_counts: list[int] = []
    largest: Any = None
    deadline = time.perf_counter() + MAX_SECONDS_AHEAD
    for batch in itertools.islice(trainer.get_train_dataloader(), MAX_BATCHES_AHEAD):
        token_counts.append(count_tokens(batch["micro_batches"]))
        if largest is None or token_counts[-1] > count_tokens(largest["micro_batches"]):
            largest = batch
        if time.perf_counter() > deadline:
            break
    if largest is not None:
        trainer.training_step(trainer.model, largest)
        trainer.model.zero_grad()
    return token_counts


def _evaluation_seconds(trainer: Any, hyperparameters: Hyperparameters) -> float:
    """Estimate the seconds of all evaluations from some batches, scaled by tokens."""
    if not hyperparameters.eval_steps:
        return 0.0
    trainer.model.eval()
    token_counts, done, seconds = [], 0, 0.0
    began = time.perf_counter()
    with torch.no_grad():
        for batch in trainer.get_eval_dataloader():
            token_counts.append(count_tokens(batch["micro_batches"]))
            if time.perf_counter() - began > EVALUATED_SECONDS + MAX_SECONDS_AHEAD:
                break
            if time.perf_counter() - began < EVALUATED_SECONDS:
                _ = [trainer.token_losses(micro_batch).sum().item() for micro_batch in batch["micro_batches"]]
                done, seconds = sum(token_counts), time.perf_counter() - began
    batches = math.ceil(len(trainer.eval_dataset) / hyperparameters.batch_size)
    return seconds / done * fmean(token_counts) * batches * (hyperparameters.total_steps // hyperparameters.eval_steps)


def _checkpoint_seconds(trainer: Any, hyperparameters: Hyperparameters, folder: Path) -> float:
    """Time one checkpoint, and return the duration of all checkpoints of the run."""
    began = time.perf_counter()
    checkpoints.write_folder_atomically(folder / "checkpoint", trainer.write_checkpoint)
    return (time.perf_counter() - began) * math.ceil(hyperparameters.total_steps / hyperparameters.save_steps)
