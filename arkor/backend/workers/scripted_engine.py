"""An engine for tests that simulates a run without a model, with reproducible numbers."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

from attrs import field, frozen

from arkor.backend.engine.interface import Recorder, Run, RunError
from arkor.backend.runs.paths import STATE_FOLDER
from arkor.protocol.jobs import JobConfig
from arkor.protocol.step_counts import steps_of


@frozen
class ScriptedEngine:
    """Trains with `loss = 2 * 0.9**step`.

    A run has `max_steps` steps (10) of `step_seconds` (`ARKOR_SCRIPTED_STEP_SECONDS`, 0). A
    learning rate of 1e5 or more diverges. The model `scripted/fail` raises, `scripted/crash` ends
    the process at every step 3, and `scripted/crash-once-5-7` ends it once at each of the steps 5
    and 7.
    """

    step_seconds: float = field(factory=lambda: float(os.environ.get("ARKOR_SCRIPTED_STEP_SECONDS") or 0))

    def train(self, run: Run, recorder: Recorder) -> dict[str, Any]:
        config = run.config
        if config.model == "scripted/fail":
            raise RunError("This model fails by design; name another one.")
        total = config.max_steps or 10
        save_every = max(1, total // 5) if config.save_steps is None else steps_of(config.save_steps, total)
        begin, loss_sum = 0, 0.0  # the sum reveals skipped or repeated steps
        if run.checkpoint:
            state = json.loads((run.checkpoint / STATE_FOLDER / "score.json").read_bytes())
            begin, loss_sum = state["step"], state["sum"]
        recorder.started(total)
        for step in range(begin + 1, total + 1):
            time.sleep(self.step_seconds)
            if recorder.stopping:
                return {}
            loss_sum += self._loss(config, step)
            _maybe_crash(run, step)
            self._log(config, recorder, step, total)
            if step % save_every == 0:
                recorder.checkpoint(step, partial(_checkpoint, step, loss_sum))
        recorder.final(partial(_adapter, loss_sum))
        return {"steps": total, "loss": self._loss(config, total)}

    def _log(self, config: JobConfig, recorder: Recorder, step: int, total: int) -> None:
        if step % steps_of(config.logging_steps or 1, total) == 0 or step == total:
            rate = (config.learning_rate or 1e-3) * (1 - (step - 1) / total)
            recorder.log(step, loss=self._loss(config, step), learning_rate=rate, epoch=step / total)
        if config.eval_steps and step % steps_of(config.eval_steps, total) == 0:
            recorder.log(step, eval_loss=self._loss(config, step) * 1.1)

    def _loss(self, config: JobConfig, step: int) -> float:
        return math.nan if (config.learning_rate or 0) >= 1e5 else 2.0 * 0.9**step


def _maybe_crash(run: Run, step: int) -> None:
    """End the process if the model's name requires it at this step."""
    once = run.config.model.removeprefix("scripted/crash-once-").split("-")
    if str(step) in once:
        with contextlib.suppress(FileExistsError):
            (run.folder / f"crashed-at-{step}").touch(exist_ok=False)
            os._exit(13)
    if run.config.model == "scripted/crash" and step == 3:
        os._exit(13)


def _checkpoint(step: int, loss_sum: float, folder: Path) -> None:
    _adapter(loss_sum, folder)
    (folder / STATE_FOLDER).mkdir()
    (folder / STATE_FOLDER / "score.json").write_text(json.dumps({"step": step, "sum": loss_sum}))


def _adapter(loss_sum: float, folder: Path) -> None:
    """Write the files of an adapter; the weights are a safetensors file without tensors."""
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 1}')
    header = json.dumps({"__metadata__": {"sum": loss_sum.hex()}}).encode()
    (folder / "adapter_model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
