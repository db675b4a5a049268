"""The estimated time and memory of a run, from `backend/preflight/process.py`, and its outcome."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from arkor.formatting import format_bytes, format_duration
from arkor.protocol.codec import from_wire

_MAX_NUMBER = 1e15  # seconds or bytes; a larger number cannot be meant


@frozen
class Estimate:
    """The expected time and memory of a run, from measurements of `timed_steps` of its steps.

    `seconds` last from the first step to the end, evaluations and checkpoints included, after
    `preparing_seconds`; a step takes `step_seconds`. `memory_bytes` and `device_memory_bytes` are
    the peaks of the process and of the GPU. With `busy`, other programs were computing during the
    measurement.
    """

    steps: int
    seconds: float
    step_seconds: float
    memory_bytes: int | None = None
    device_memory_bytes: int | None = None
    preparing_seconds: float | None = None
    timed_steps: int = 0
    device: str = ""
    busy: bool = False
    extra: Mapping[str, Any] = field(factory=dict)

    def __str__(self) -> str:
        """`"60 steps of 1.3 s, 1:42 in all, with 1.4 GB of memory"`."""
        step = f"{self.step_seconds:#.2g}" if self.step_seconds < 10 else f"{self.step_seconds:.0f}"
        time = f"{self.steps} steps of {step} s, {format_duration(self.seconds)} in all"
        memory = [f"{format_bytes(self.memory_bytes)} of memory"] if self.memory_bytes else []
        memory += [f"{format_bytes(self.device_memory_bytes)} of GPU memory"] if self.device_memory_bytes else []
        return f"{time}, with {' and '.join(memory)}" if memory else time


@frozen
class Outcome:
    """An estimate and the measured `seconds` and `memory_bytes` of the run, if known."""

    estimate: Estimate
    seconds: float | None = None
    memory_bytes: int | None = None

    @property
    def error(self) -> float | None:
        """The relative error of the estimated time; positive if the estimate was too high."""
        return None if not self.seconds else (self.estimate.seconds - self.seconds) / self.seconds

    def __str__(self) -> str:
        """`"estimated 1:42, took 1:37: 5 % too high; memory estimated 1.4 GB, took 1.4 GB"`."""
        text = f"estimated {format_duration(self.estimate.seconds)}"
        if self.seconds and self.error is not None:
            share = f"{abs(self.error):.0%}".replace("%", " %")
            verdict = "exactly" if share == "0 %" else f"{share} too {'high' if self.error > 0 else 'low'}"
            text += f", took {format_duration(self.seconds)}: {verdict}"
        if self.memory_bytes and self.estimate.memory_bytes:
            expected, peak = format_bytes(self.estimate.memory_bytes), format_bytes(self.memory_bytes)
            text += f"; memory estimated {expected}, took {peak}"
        return text + (" (estimated while the machine was busy)" if self.estimate.busy else "")


def parse_estimate(value: Any) -> Estimate | None:
    """Decode an estimate; return None if a number is missing or out of range."""
    if isinstance(value, Estimate):
        return value
    if not isinstance(value, Mapping) or not all(_is_number(value.get(name)) for name in ("seconds", "stepSeconds")):
        return None
    counts = (value.get("steps"), value.get("timedSteps", 0))
    optional = (value.get(name) for name in ("memoryBytes", "deviceMemoryBytes", "preparingSeconds"))
    if not all(type(count) is int and _is_number(count) for count in counts):
        return None
    return from_wire(Estimate, value) if all(number is None or _is_number(number) for number in optional) else None


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < _MAX_NUMBER


def outcome_of(estimate: Estimate | None, metrics: Mapping[str, Any] | None) -> Outcome | None:
    """Compare an estimate with the metrics of the completed run."""
    if estimate is None:
        return None
    seconds, memory = ((metrics or {}).get(name) for name in ("seconds", "memory_bytes"))
    return Outcome(estimate, seconds if _is_number(seconds) else None, memory if _is_number(memory) else None)
