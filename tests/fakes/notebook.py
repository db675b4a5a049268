"""A `Recorder` that keeps what it is told, and its checkpoints in a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


class MemoryRecorder:
    """`stop_at` is the step after which the run is to stop."""

    def __init__(self, folder: Path, stop_at: int | None = None) -> None:
        self.folder = folder
        self.stopping = False
        self.messages: list[str] = []
        self.total_steps: int | None = None
        self.logs: list[dict[str, Any]] = []
        self.checkpoints: list[int] = []
        self.finished = False
        self.metrics: dict[str, Any] = {}
        self._stop_at = stop_at

    def preparing(self, message: str) -> None:
        self.messages.append(message)

    def started(self, total_steps: int) -> None:
        self.total_steps = total_steps

    def log(self, step: int, **numbers: float | None) -> None:
        self.logs.append({"step": step, **{name: value for name, value in numbers.items() if value is not None}})
        if step == self._stop_at:
            self.stopping = True

    def checkpoint(self, step: int, write: Callable[[Path], None]) -> None:
        self.checkpoints.append(step)
        self._fill(self.folder / "checkpoints" / str(step), write)

    def final(self, write: Callable[[Path], None]) -> None:
        self.finished = True
        self._fill(self.folder / "final", write)

    def _fill(self, folder: Path, write: Callable[[Path], None]) -> None:
        folder.mkdir(parents=True)
        write(folder)

    def logs_without_speed(self) -> list[dict[str, Any]]:
        """What must be the same when the same run is made again."""
        return [{name: value for name, value in log.items() if name != "samples_per_second"} for log in self.logs]

    @property
    def losses(self) -> list[float]:
        return [log["loss"] for log in self.logs if "loss" in log]

    @property
    def eval_steps(self) -> list[int]:
        return [log["step"] for log in self.logs if "eval_loss" in log]
