"""What an engine is, and a deterministic one that needs no model.

An engine takes a run and tells a recorder what happens. Where that goes (log, checkpoints, the stop signal) is the
worker's business.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from attrs import field, frozen

from arkor.jobs import JobConfig


class RunError(Exception):
    """Why a run cannot go on: a sentence for the person who submitted it."""


@frozen
class Run:
    """What an engine is given: the configuration, the run's `folder`, the backend's `home`, the data set's token."""

    job_id: str
    config: JobConfig
    folder: Path
    home: Path
    blob_token: str | None = field(default=None, repr=False)


class Recorder(Protocol):
    """What an engine reports to."""

    @property
    def stopping(self) -> bool:
        """Whether the run was asked to stop; an engine looks at it at least once a step and returns early if so."""
        ...

    def preparing(self, message: str) -> None:
        """What goes on before the first step, for a person: "Converting the starter model (once, about 20 s)"."""
        ...

    def started(self, total_steps: int) -> None:
        """The first step is about to be taken."""
        ...

    def log(
        self,
        step: int,
        *,
        loss: float | None = None,
        eval_loss: float | None = None,
        learning_rate: float | None = None,
        epoch: float | None = None,
        samples_per_second: float | None = None,
    ) -> None:
        """The numbers of one step; each may be NaN or infinite."""
        ...

    def checkpoint(self, step: int, write: Callable[[Path], None]) -> None:
        """`write(folder)` fills an empty folder, which becomes `checkpoints/<step>` only when it is complete."""
        ...

    def final(self, write: Callable[[Path], None]) -> None:
        """The same for `final/`."""
        ...


class Engine(Protocol):
    """What trains."""

    def train(self, run: Run, recorder: Recorder) -> dict[str, Any]:
        """Train to the end, or until `recorder.stopping`; returns the metrics of `training.completed`.

        Raises `RunError` for what the person can mend.
        """
        ...


def load_engine(name: str) -> Engine:
    """`"trl"`, or `"scripted"`; torch and its kin are imported with the former alone."""
    if name == "scripted":
        return ScriptedEngine()
    engine: Engine = importlib.import_module("arkor.backend.training.engine_trl").TrlEngine()
    return engine


@frozen
class ScriptedEngine:
    """Plays a run: `loss = 2 * 0.9**step`. For tests of everything around an engine.

    `max_steps` steps (10), each `step_seconds` long (`ARKOR_SCRIPTED_STEP_SECONDS`, 0); a learning rate of 1e5 or
    more diverges; the model `scripted/fail` raises, and `scripted/crash` takes the process down at step 3.
    """

    step_seconds: float = field(factory=lambda: float(os.environ.get("ARKOR_SCRIPTED_STEP_SECONDS") or 0))

    def train(self, run: Run, recorder: Recorder) -> dict[str, Any]:
        """See `Engine.train`."""
        config = run.config
        if config.model == "scripted/fail":
            raise RunError("This model fails by design; name another one.")
        total = config.max_steps or 10
        save_every = config.save_steps or max(1, total // 5)
        recorder.started(total)
        for step in range(1, total + 1):
            time.sleep(self.step_seconds)
            if recorder.stopping:
                return {}
            if config.model == "scripted/crash" and step == 3:
                os._exit(13)
            self._log(config, recorder, step, total)
            if step % save_every == 0:
                recorder.checkpoint(step, self._adapter)
        recorder.final(self._adapter)
        return {"steps": total, "loss": self._loss(config, total)}

    def _log(self, config: JobConfig, recorder: Recorder, step: int, total: int) -> None:
        if step % (config.logging_steps or 1) == 0:
            rate = (config.learning_rate or 1e-3) * (1 - (step - 1) / total)
            recorder.log(step, loss=self._loss(config, step), learning_rate=rate, epoch=step / total)
        if config.eval_steps and step % config.eval_steps == 0:
            recorder.log(step, eval_loss=self._loss(config, step) * 1.1)

    def _loss(self, config: JobConfig, step: int) -> float:
        return math.nan if (config.learning_rate or 0) >= 1e5 else 2.0 * 0.9**step

    def _adapter(self, folder: Path) -> None:
        """Files by the names of a real adapter; the weights are an empty safetensors file."""
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 1}')
        header = json.dumps({}).encode()
        (folder / "adapter_model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
