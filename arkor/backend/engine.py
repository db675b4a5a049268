"""What an engine is, and a deterministic one that needs no model.

An engine takes a run and tells a recorder what happens. Where that goes (log, checkpoints, the stop signal) is the
worker's business.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from attrs import asdict, define, field, frozen

from arkor.backend.home import STATE
from arkor.jobs import JobConfig


class RunError(Exception):
    """Why a run cannot go on: a sentence for the person who submitted it."""


@frozen
class Run:
    """What an engine is given: the configuration, the run's `folder`, the backend's `home`, the data set's token.

    `checkpoint` is the folder of the one to go on from, as the engine has written it, or None at the start.
    """

    job_id: str
    config: JobConfig
    folder: Path
    home: Path
    blob_token: str | None = field(default=None, repr=False)
    checkpoint: Path | None = None


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
        """The numbers of one step; each may be NaN or infinite. Those that were told before a crash are ignored."""
        ...

    def checkpoint(self, step: int, write: Callable[[Path], None]) -> None:
        """`write(folder)` fills an empty folder, which becomes `checkpoints/<step>` only when it is complete.

        What training needs to go on from it lies in the folder `home.STATE` in it. The run goes on without the
        checkpoint if the disk does not take it.
        """
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


@define
class Score:
    """How far a scripted run has come: `step`, and the `sum` of the losses so far, so that a slip would show."""

    step: int = 0
    sum: float = 0.0


@frozen
class ScriptedEngine:
    """Plays a run: `loss = 2 * 0.9**step`. For tests of everything around an engine.

    `max_steps` steps (10), each `step_seconds` long (`ARKOR_SCRIPTED_STEP_SECONDS`, 0); a learning rate of 1e5 or
    more diverges; the model `scripted/fail` raises, `scripted/crash` takes the process down whenever it comes to step
    3, and `scripted/crash-once-5-7` once at each of the steps 5 and 7.
    """

    step_seconds: float = field(factory=lambda: float(os.environ.get("ARKOR_SCRIPTED_STEP_SECONDS") or 0))

    def train(self, run: Run, recorder: Recorder) -> dict[str, Any]:
        """See `Engine.train`."""
        config = run.config
        if config.model == "scripted/fail":
            raise RunError("This model fails by design; name another one.")
        total = config.max_steps or 10
        save_every = config.save_steps or max(1, total // 5)
        score = Score(**json.loads((run.checkpoint / STATE / "score.json").read_bytes())) if run.checkpoint else Score()
        recorder.started(total)
        while score.step < total:
            time.sleep(self.step_seconds)
            if recorder.stopping:
                return {}
            score.step += 1
            score.sum += self._loss(config, score.step)
            _crash(run, score.step)
            self._log(config, recorder, score.step, total)
            if score.step % save_every == 0:
                recorder.checkpoint(score.step, partial(_checkpoint, score))
        recorder.final(partial(_adapter, score))
        return {"steps": total, "loss": self._loss(config, total)}

    def _log(self, config: JobConfig, recorder: Recorder, step: int, total: int) -> None:
        if step % (config.logging_steps or 1) == 0:
            rate = (config.learning_rate or 1e-3) * (1 - (step - 1) / total)
            recorder.log(step, loss=self._loss(config, step), learning_rate=rate, epoch=step / total)
        if config.eval_steps and step % config.eval_steps == 0:
            recorder.log(step, eval_loss=self._loss(config, step) * 1.1)

    def _loss(self, config: JobConfig, step: int) -> float:
        return math.nan if (config.learning_rate or 0) >= 1e5 else 2.0 * 0.9**step


def _crash(run: Run, step: int) -> None:
    """End the process at once, if the model's name says so."""
    once = run.config.model.removeprefix("scripted/crash-once-").split("-")
    if str(step) in once:
        with contextlib.suppress(FileExistsError):
            (run.folder / f"crashed-at-{step}").touch(exist_ok=False)
            os._exit(13)
    if run.config.model == "scripted/crash" and step == 3:
        os._exit(13)


def _checkpoint(score: Score, folder: Path) -> None:
    _adapter(score, folder)
    (folder / STATE).mkdir()
    (folder / STATE / "score.json").write_text(json.dumps(asdict(score)))


def _adapter(score: Score, folder: Path) -> None:
    """Files by the names of a real adapter; the weights are a safetensors file with no tensor in it."""
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 1}')
    header = json.dumps({"__metadata__": {"sum": score.sum.hex()}}).encode()
    (folder / "adapter_model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
