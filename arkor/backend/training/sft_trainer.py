"""TRL's `SFTTrainer` with the same losses and less work, exact resumption, and a `Recorder`.

TRL and transformers determine the data order, schedule, optimizer and clipping. This subclass
replaces the forward and backward pass (no padding, output head on labelled positions only, no
additional metrics), evaluates over tokens instead of batches, reports to a `Recorder` instead of
printing, and saves everything that is needed to resume bit for bit.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from attrs import astuple
from safetensors.torch import load_file
from torch import Tensor
from transformers import GenerationConfig, TrainerCallback
from trl import SFTTrainer

from arkor.backend.compute.chat_template import ChatTemplate
from arkor.backend.engine.interface import Recorder, RunError
from arkor.backend.runs.paths import STATE_FOLDER
from arkor.backend.training.collation import Layout, LayoutChoice, MicroBatch, split_batch
from arkor.backend.training.forward_pass import ForwardPass
from arkor.backend.training.layout import choose_layout
from arkor.backend.training.training_state import (
    NotSerializable,
    assert_same,
    random_states,
    read_tree,
    restore_random,
    write_tree,
)

#: The number of rows whose tokens are used to choose the layout.
LAYOUT_TEST_ROWS = 8


def generation_config(model: Any, tokenizer: Any) -> GenerationConfig:
    """Return the tokens that end an answer: the model's own, and those that end a turn in training."""
    known = model.generation_config.eos_token_id
    known = known if isinstance(known, (list, tuple)) else [known]
    ends = [*known, tokenizer.eos_token_id, *ChatTemplate(tokenizer).end_token_ids]
    return GenerationConfig(
        bos_token_id=model.generation_config.bos_token_id,
        eos_token_id=list(dict.fromkeys(token for token in ends if token is not None)) or None,
        pad_token_id=tokenizer.pad_token_id,
    )


class StepInterrupted(Exception):
    """The run was asked to stop between two micro-batches of a step."""


class StopOnRequest(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Ends the loop on request; a finished step is logged and saved, but not evaluated."""

    def __init__(self, recorder: Recorder, on_interrupt: Callable[[], None]) -> None:
        self._recorder = recorder
        self._on_interrupt = on_interrupt

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 - signature of transformers
        control.should_log |= state.global_step >= state.max_steps  # the last loss, whatever logging_steps is
        if self._recorder.stopping:
            control.should_training_stop = True
            if control.should_evaluate:
                control.should_evaluate = False
                self._on_interrupt()

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 - as above
        control.should_training_stop |= self._recorder.stopping

    on_log = on_save = on_evaluate


class Collator:
    """Collates examples to `{"micro_batches": [MicroBatch, …]}`, row by row until `layout` is set."""

    def __init__(self, dtype: torch.dtype, pad: int) -> None:
        self.layout = LayoutChoice(Layout.SINGLE, "no layout was chosen")
        self.dtype = dtype
        self.pad = pad

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {"micro_batches": split_batch(examples, self.layout, dtype=self.dtype, pad=self.pad)}


class LeanSFTTrainer(SFTTrainer):  # type: ignore[misc]  # trl is not typed
    """See the module. A run resumes only with inputs that have the same `fingerprints`."""

    control: Any

    def __init__(
        self, *, recorder: Recorder, data_collator: Collator, fingerprints: dict[str, Any], **options: Any
    ) -> None:
        stop = StopOnRequest(recorder, self._mark_inconsistent)
        super().__init__(data_collator=data_collator, callbacks=[stop], **options)
        self._recorder = recorder
        self._fingerprints = fingerprints
        self._restored: dict[str, Any] = {}
        self._began_at = 0.0
        self._is_inconsistent = False
        self._seconds = 0.0
        self._rows = 0
        self._began = 0.0
        self.last_losses: dict[str, float] = {}
        self._carried_loss = self._unlogged_loss = torch.zeros((), device=self.args.device)
        self._forward_pass = ForwardPass(self.model)

    def _send_telemetry(self) -> None:
        """Send no telemetry."""

    def floating_point_ops(self, inputs: Any) -> int:  # noqa: ARG002 - signature of transformers
        """Skip the count, which is not used."""
        return 0

    @property
    def seconds(self) -> float:
        """The time spent training, including the time before the run was resumed."""
        return float(self._restored.get("seconds", 0.0)) + time.perf_counter() - self._began_at

    def run_training(self) -> int:
        """Run the remaining steps; return the number of steps since the start of the run."""
        self._began_at = time.perf_counter()
        done: int = self._restored.get("step", 0)
        if done >= self.args.max_steps:
            return done
        with suppress(StepInterrupted):
            self.train(resume_from_checkpoint=str(self._state_folder) if self._restored else None)
        step: int = self.state.global_step
        return step

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:  # noqa: ARG002
        """Run forward and backward by micro-batches; return the mean loss per target, fp32."""
        self._began = time.perf_counter()
        model.train()
        micro_batches: list[MicroBatch] = inputs["micro_batches"]
        count = sum(len(micro_batch.targets) for micro_batch in micro_batches)
        total = torch.zeros((), device=self.args.device)
        for number, micro_batch in enumerate(micro_batches):
            if number and self._recorder.stopping:
                self._mark_inconsistent()
                raise StepInterrupted
            loss = self.token_losses(micro_batch).sum() / count
            self.accelerator.backward(loss)
            total += loss.detach()
        total += self._carried_loss  # transformers sums the losses of unlogged steps from zero after a resume
        self._carried_loss = torch.zeros_like(total)
        self._unlogged_loss = self._unlogged_loss + total
        return total

    def token_losses(self, micro_batch: MicroBatch) -> Tensor:
        """Return the negative log-likelihood of each target: fp32, (targets,)."""
        return self._forward_pass.token_losses(micro_batch.to(self.args.device))

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Return the mean loss per target of the evaluation rows; NaN if stopped at once."""
        self._finish_step()
        self.model.eval()
        total, count = 0.0, 0
        with torch.no_grad():
            for batch in self.get_eval_dataloader():
                for micro_batch in batch["micro_batches"]:
                    total += self.token_losses(micro_batch).sum().item()
                    count += len(micro_batch.targets)
                if self._recorder.stopping:
                    break
        metrics = {"eval_loss": total / count if count else float("nan")}
        if self._recorder.stopping:  # the mean of a part of the rows
            self._mark_inconsistent()
        else:
            self.last_losses |= metrics
            self._recorder.log(self.state.global_step, eval_loss=metrics["eval_loss"])
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def choose_layout(self) -> LayoutChoice:
        """Choose the layout of the batches, and return it."""
        collator: Collator = self.data_collator
        rows = self.train_dataset[:LAYOUT_TEST_ROWS]["input_ids"]
        collator.layout = choose_layout(self.model, rows, collator.dtype, collator.pad)
        return collator.layout

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:  # noqa: ARG002
        """Send the metrics of a step to the recorder; drop the summary at the end of training."""
        if "loss" not in logs:
            return
        self._finish_step()
        speed = self._rows / self._seconds if self._seconds else None
        self._seconds, self._rows = 0.0, 0
        self._recorder.log(
            self.state.global_step,
            loss=logs["loss"],
            learning_rate=logs["learning_rate"],
            epoch=self.state.epoch,
            samples_per_second=speed,
        )
        self.last_losses["loss"] = logs["loss"]
        self._unlogged_loss = torch.zeros_like(self._unlogged_loss)
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs)

    def _finish_step(self) -> None:
        """Add the last step to the speed, before evaluation or saving adds to its time."""
        if self._began:
            self._seconds += time.perf_counter() - self._began
            self._rows += self.args.per_device_train_batch_size
            self._began = 0.0

    def _save_checkpoint(self, model: Any, trial: Any) -> None:  # noqa: ARG002
        self._finish_step()
        self._recorder.checkpoint(self.state.global_step, self.write_checkpoint)

    def write_adapter(self, folder: Path) -> None:
        """Write the adapter, the tokenizer with its chat template, and the tokens that end an answer."""
        # "auto" would compare the embedding with that of the hub's config.json; it is never resized here
        self.model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
        self.processing_class.save_pretrained(folder)
        generation_config(self.model, self.processing_class).save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card

    def write_checkpoint(self, folder: Path) -> None:
        """Write the adapter, and the training state if that is possible without pickle."""
        self.write_adapter(folder)
        if self._is_inconsistent:
            return
        state = folder / STATE_FOLDER
        state.mkdir()
        try:
            write_tree(state, "training", self._state_tree())
        except NotSerializable:  # tensor subclasses; without the state, the run restarts and ends the same
            shutil.rmtree(state)
            return
        self.state.save_to_json(str(state / "trainer_state.json"))

    def resume_from(self, checkpoint: Path) -> None:
        """Restore a checkpoint. Raise `RunError` if the inputs of the run changed since."""
        self._state_folder = checkpoint / STATE_FOLDER
        self._restored = read_tree(self._state_folder, "training")
        assert_same(self._restored["learns_from"], self._fingerprints)
        self._restore_layout(self._restored)
        self.last_losses = self._restored["last"]
        if self.args.device.type == "cpu" and self._restored["threads"] <= torch.get_num_threads():
            torch.set_num_threads(self._restored["threads"])  # the number of threads changes the rounding of sums
        self._load_adapter(checkpoint)

    def _restore_layout(self, restored: dict[str, Any]) -> None:
        """Use the layout that the run began with; states before layouts had names say `flat` or not."""
        if "layout" in restored:
            name, *rest = restored["layout"]
            self.data_collator.layout = LayoutChoice(Layout(name), *rest)
        elif self.choose_layout().layout is Layout.FLAT and not restored["flat"]:
            self.data_collator.layout = LayoutChoice(Layout.PADDED, "the run began with padded batches")

    def _mark_inconsistent(self) -> None:
        """Do not save the state any more: resuming after an interrupted step is not exact."""
        self._is_inconsistent = True

    def _state_tree(self) -> dict[str, Any]:
        """Return everything that changes during training, except the adapter (saved in fp32)."""
        layout: LayoutChoice = self.data_collator.layout
        return {
            "step": self.state.global_step,
            "seconds": self.seconds,
            "learns_from": self._fingerprints,
            "flat": self.data_collator.layout.layout is Layout.FLAT,
            "layout": list(astuple(layout)),
            "threads": torch.get_num_threads(),
            "last": self.last_losses,
            "unlogged": (self._globalstep_last_logged, self._unlogged_loss),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.lr_scheduler.state_dict(),
            "random": random_states(),
        }

    def _load_adapter(self, checkpoint: Path) -> None:
        saved = load_file(checkpoint / "adapter_model.safetensors")
        trained = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        names = {name.replace(".default", ""): weight for name, weight in trained.items()}
        if {(name, weight.dtype) for name, weight in saved.items()} != {(n, w.dtype) for n, w in names.items()}:
            raise RunError(
                f"The adapter in {checkpoint} does not fit this run's model.", remedy="Submit the run again."
            )
        with torch.no_grad():
            for name, weight in names.items():
                weight.copy_(saved[name])

    def _load_from_checkpoint(self, *_: Any, **__: Any) -> None:
        """Do nothing: the adapter is loaded already."""

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Do nothing: no gradient scaler is used."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self.optimizer.load_state_dict(self._restored["optimizer"])
            self.lr_scheduler.load_state_dict(self._restored["scheduler"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Restore random states and the loss since the last log, before the first step."""
        if checkpoint is not None:
            self._globalstep_last_logged, unlogged = self._restored["unlogged"]
            self._carried_loss = unlogged.to(self.args.device)
            restore_random(self._restored["random"])
