"""What a run was expected to take, and how it came out.

Who estimates, and from what, is the business of `backend/preflight/dry_run.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from arkor.formatting import format_bytes, format_duration
from arkor.protocol.codec import from_wire

#: Seconds, or bytes, beyond which a number means nothing.
_MAX_SECONDS = 1e15


@frozen
class Estimate:
    """What a run will take where it was checked, judged by `timed_steps` of its steps.

    `seconds` are those from the first step to the end, evaluations and checkpoints included; `preparing_seconds` go
    before them, `step_seconds` to each step. `memory_bytes` is the peak of the process, `device_memory_bytes` what it
    takes of a GPU beside. `busy` says that something else was computed there at the same time.
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
        words = f"{self.steps} steps of {duration(self.step_seconds)}, {format_duration(self.seconds)} in all"
        memory = [f"{format_bytes(self.memory_bytes)} of memory"] if self.memory_bytes else []
        memory += [f"{format_bytes(self.device_memory_bytes)} of the GPU's"] if self.device_memory_bytes else []
        return f"{words}, with {' and '.join(memory)}" if memory else words


@frozen
class Outcome:
    """How good an estimate was: `seconds` and the memory are what the run really took, None where nobody said."""

    estimate: Estimate
    seconds: float | None = None
    memory_bytes: int | None = None

    @property
    def error(self) -> float | None:
        """By which share of what it took the time was estimated too high, or too low where it is negative."""
        return None if not self.seconds else (self.estimate.seconds - self.seconds) / self.seconds

    @property
    def memory_error(self) -> float | None:
        """The same of the memory."""
        if not self.memory_bytes or not self.estimate.memory_bytes:
            return None
        return (self.estimate.memory_bytes - self.memory_bytes) / self.memory_bytes

    def __str__(self) -> str:
        """`"estimated 1:42, took 1:37: 5 % too high; memory estimated 1.4 GB, took 1.4 GB"`."""
        words = f"estimated {format_duration(self.estimate.seconds)}"
        if self.seconds and self.error is not None:
            words += f", took {format_duration(self.seconds)}: {_judged(self.error)}"
        if self.memory_bytes and self.memory_error is not None:
            words += f"; memory estimated {format_bytes(self.estimate.memory_bytes or 0)}, took {format_bytes(self.memory_bytes)}"
        return words + (" (estimated while the machine was busy)" if self.estimate.busy else "")


def parse_estimate(value: Any) -> Estimate | None:
    """An estimate from JSON; None for what is none."""
    if not isinstance(value, Mapping) or not all(_is_number(value.get(name)) for name in ("seconds", "stepSeconds")):
        return None
    others = (value.get(name) for name in ("memoryBytes", "deviceMemoryBytes", "preparingSeconds"))
    counts = (value.get("steps"), value.get("timedSteps", 0))
    if not all(type(count) is int and _is_number(count) for count in counts):
        return None
    return from_wire(Estimate, value) if all(other is None or _is_number(other) for other in others) else None


def _is_number(value: Any) -> bool:
    """Whether it is one that can be meant: no person waits a million years."""
    return type(value) in (int, float) and 0 <= value < _MAX_SECONDS


def outcome_of(estimate: Estimate | None, metrics: Mapping[str, Any] | None) -> Outcome | None:
    """What became of an estimate, by the metrics of the run that has completed; None where there was none."""
    if estimate is None:
        return None
    seconds, memory = ((metrics or {}).get(name) for name in ("seconds", "memory_bytes"))
    return Outcome(estimate, seconds if _is_number(seconds) else None, memory if _is_number(memory) else None)


def duration(seconds: float) -> str:
    """`"0.031 s"`, `"1.3 s"`, `"12 s"`: in two figures, as no estimate is better."""
    return f"{seconds:#.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def _judged(error: float) -> str:
    share = f"{abs(error):.0%}".replace("%", " %")
    return "exactly" if share == "0 %" else f"{share} too {'high' if error > 0 else 'low'}"
