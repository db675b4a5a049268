"""A `Recorder` that keeps every report in memory, and checkpoints in a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import Factory, define

from arkor.backend.engine.interface import Recorder


@define
class MemoryRecorder(Recorder):
    """Writes checkpoints below `folder`; `stop_at` is the step after which the run is to stop."""

    folder: Path
    _stop_at: int | None = None
    stopping: bool = False
    finished: bool = False
    total_steps: int | None = None
    messages: list[str] = Factory(list)
    logs: list[dict[str, Any]] = Factory(list)
    checkpoints: list[int] = Factory(list)
    metrics: dict[str, Any] = Factory(dict)

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
        """The logs without the one number that differs between equal runs."""
        return [{name: value for name, value in log.items() if name != "samples_per_second"} for log in self.logs]

    @property
    def losses(self) -> list[float]:
        return [log["loss"] for log in self.logs if "loss" in log]

    @property
    def eval_steps(self) -> list[int]:
        return [log["step"] for log in self.logs if "eval_loss" in log]
