"""The engine that trains: a run's configuration → data, model, adapter, TRL's loop, and what comes of it.

The stages in order; what each one does is in a room of its own: `backend/engine/hyperparameters.py` (numbers),
`datasets.py` (rows), `backend/compute/models.py` (loading), `tokenization.py`, `lora.py`, `collation.py`,
`sft_trainer.py` (the loop).
"""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import field, frozen

from arkor.backend.compute.device import Device, choose_device
from arkor.backend.compute.models import load_model, load_tokenizer, local_folder, quiet_libraries
from arkor.backend.compute.process_tuning import peak_memory_bytes, prepare_to_compute
from arkor.backend.data.datasets import MAX_FAULTS_REPORTED, Rows, load_rows
from arkor.backend.data.download import private_urls_allowed
from arkor.backend.data.packed_rows import PackedRows
from arkor.backend.engine.hyperparameters import (
    DRY_RUN_EVAL_ROWS,
    DRY_RUN_ROWS,
    EVAL_ROWS,
    EVAL_SHARE,
    Hyperparameters,
    check_names,
    resolve_hyperparameters,
    setting_or_default,
)
from arkor.backend.engine.interface import Recorder, Run, RunError
from arkor.backend.training.tokenization import EncodedDataset, encode
from arkor.protocol.jobs import JobConfig

#: Everything random in a run comes from this seed.
SEED = 42


@frozen
class TrlEngine:
    """Fine-tunes with TRL and PEFT on what is here. `precision` overrides the number format of the frozen weights."""

    precision: str | None = field(default=None)

    def train(self, run: Run, recorder: Recorder) -> dict[str, Any]:
        """See `arkor.backend.engine.interface.Engine.train`."""
        check_names(run.config)
        prepare_to_compute()
        with silence_libraries():
            device = choose_device(self.precision)
            recorder.preparing(f"Training on {device.description}")
            check_device(run.config, device)
            rows = load_run_rows(run, recorder)
            loaded = load_run_model(run, device, recorder)
            train, evaluation = encode_rows(run.config, rows, loaded, recorder)
            numbers = resolve_hyperparameters(run.config, len(train), evaluates=evaluation is not None)
            if recorder.stopping:
                return {}
            arguments = {"output_dir": str(run.folder), **training_arguments(numbers, device)}
            trainer = build_trainer(loaded, arguments, device, (train, evaluation), numbers=numbers, recorder=recorder)
            return _train_loop(trainer, numbers, recorder, run.checkpoint)


@frozen
class LoadedModel:
    """What learns: the model with its adapter, and its tokenizer."""

    model: Any
    tokenizer: Any


# The stages


def check_device(config: JobConfig, device: Device) -> None:
    if config.load_in_4bit and device.kind != "cuda":
        raise RunError(
            f"load_in_4bit needs an NVIDIA GPU, and this run is on {device.description}. "
            "Leave load_in_4bit out: the weights are then kept in 16 or 32 bits."
        )
    if config.load_in_4bit and importlib.util.find_spec("bitsandbytes") is None:
        raise RunError("load_in_4bit needs the package bitsandbytes where the backend runs: pip install bitsandbytes")


def load_run_rows(run: Run, recorder: Recorder, max_faults: int = MAX_FAULTS_REPORTED) -> Rows:
    """The checked rows; a part is held out where `eval_steps` asks for it, a dry run takes the first ones."""
    config = run.config
    recorder.preparing("Reading the data")
    rows = load_rows(
        config.dataset_source,
        format=(config.dataset_format or {}).get("type"),
        split=config.dataset_split,
        home=run.home,
        token=run.blob_token,
        allow_private=private_urls_allowed(),
        max_faults=max_faults,
    )
    for note in rows.notes:
        recorder.preparing(note)
    if config.train_on_responses_only and not rows.chat:
        raise RunError(
            "train_on_responses_only is for chats, but the rows are plain text, which has no responses. "
            "Leave it out, or write the rows as messages."
        )
    if config.eval_steps and rows.eval is None:
        rows = rows.hold_out(EVAL_SHARE, max_rows=EVAL_ROWS)
    return rows.head(DRY_RUN_ROWS, DRY_RUN_EVAL_ROWS) if config.dry_run else rows


def load_run_model(run: Run, device: Device, recorder: Recorder) -> LoadedModel:
    import transformers  # noqa: PLC0415 - who reads the plan of a run needs none

    from arkor.backend.training.lora import add_adapter  # noqa: PLC0415 - as above

    config = run.config
    folder = local_folder(config.model, run.home, recorder.preparing)
    recorder.preparing(f"Loading {config.model}")
    tokenizer = load_tokenizer(folder)
    model = load_model(folder, dtype=device.dtype, **(_four_bit() if config.load_in_4bit else {}))
    transformers.set_seed(SEED)
    model = add_adapter(model, r=setting_or_default(config, "lora_r"), alpha=setting_or_default(config, "lora_alpha"))
    return LoadedModel(model, tokenizer)


def _four_bit() -> dict[str, Any]:
    """QLoRA: the frozen weights in 4 bits, computed with in bf16."""
    import torch  # noqa: PLC0415 - as above
    import transformers  # noqa: PLC0415 - as above

    packed = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {"quantization_config": packed, "device_map": {"": 0}}


def encode_rows(
    config: JobConfig, rows: Rows, loaded: LoadedModel, recorder: Recorder
) -> tuple[EncodedDataset, EncodedDataset | None]:
    """The tokens of the rows to train on, and of those to evaluate on if there are any."""
    length = max_length_of(config, loaded.model)
    answers = rows.chat if config.train_on_responses_only is None else config.train_on_responses_only

    def encoded(what: str, part: PackedRows) -> EncodedDataset:
        recorder.preparing(f"Tokenizing {len(part)} {what} rows")
        found = encode(part, loaded.tokenizer, answers_only=answers, max_length=length)
        for note in found.notes(what, length):
            recorder.preparing(note)
        return found

    return encoded("training", rows.train), encoded("evaluation", rows.eval) if rows.eval else None


def max_length_of(config: JobConfig, model: Any) -> int:
    """Tokens of a row, at most; never more than the model has positions for."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if config.max_length and limit and config.max_length > limit:
        raise RunError(f"max_length is {config.max_length}, but {config.model} takes {limit} tokens at most.")
    length: int = setting_or_default(config, "max_length")
    return min(length, limit) if limit else length


def training_arguments(numbers: Hyperparameters, device: Device) -> dict[str, Any]:
    """The plan of a run in the words of TRL's `SFTConfig`."""
    return {
        "max_steps": numbers.total_steps,
        "per_device_train_batch_size": numbers.batch_size,
        "per_device_eval_batch_size": numbers.batch_size,
        "learning_rate": numbers.learning_rate,
        "optim": numbers.optim,
        "lr_scheduler_type": numbers.lr_scheduler_type,
        "lr_scheduler_kwargs": numbers.schedule_settings,
        "weight_decay": numbers.weight_decay,
        "warmup_steps": numbers.warmup_steps,
        "logging_steps": numbers.logging_steps,
        "save_strategy": "steps",
        "save_steps": numbers.save_steps,
        "eval_strategy": "steps" if numbers.eval_steps else "no",
        "eval_steps": numbers.eval_steps,
        "seed": SEED,
        "logging_nan_inf_filter": False,  # a loss that diverged is to be seen
        "use_cpu": device.kind == "cpu",
        "bf16": False,  # the weights are in it already; nothing is to be cast on the way
        "dataloader_pin_memory": device.kind == "cuda",
        "remove_unused_columns": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "max_length": None,  # rows are cut before
        "report_to": "none",
        "disable_tqdm": True,
    }


def build_trainer(
    loaded: LoadedModel,
    arguments: dict[str, Any],
    device: Device,
    examples: tuple[EncodedDataset, EncodedDataset | None],
    *,
    numbers: Hyperparameters,
    recorder: Recorder,
) -> Any:
    from trl import SFTConfig  # noqa: PLC0415 - as above

    from arkor.backend.training.sft_trainer import Collator, LeanSFTTrainer  # noqa: PLC0415 - as above
    from arkor.backend.training.training_state import fingerprints  # noqa: PLC0415 - as above

    train, evaluation = examples
    recompute = {recompute_argument(SFTConfig): _recomputes_activations(loaded.model, device)}
    return LeanSFTTrainer(
        recorder=recorder,
        fingerprints=fingerprints(numbers, loaded.model, train, evaluation),
        model=loaded.model,
        args=SFTConfig(**recompute, **arguments),
        processing_class=loaded.tokenizer,
        data_collator=Collator(device.dtype, loaded.tokenizer.pad_token_id),
        train_dataset=_arrow_table(train),
        eval_dataset=_arrow_table(evaluation) if evaluation else None,
    )


def recompute_argument(config_class: type) -> str:
    """Return the name of the setting that recomputes activations; transformers 5.24 renamed it."""
    names = {field.name for field in dataclasses.fields(config_class)}
    return "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"


def _recomputes_activations(model: Any, device: Device) -> bool:
    """Whether to compute activations twice rather than keep them: for models of a billion weights and more on a GPU."""
    return device.kind != "cpu" and sum(weight.numel() for weight in model.parameters()) > 1e9


def _arrow_table(examples: EncodedDataset) -> Any:
    """As an Arrow table in memory, which takes 4 bytes a token."""
    import datasets  # noqa: PLC0415 - as above
    import pyarrow as arrow  # noqa: PLC0415 - as above

    kind = arrow.list_(arrow.int32())
    columns = {"input_ids": examples.input_ids, "labels": examples.labels}
    return datasets.Dataset(arrow.table({name: arrow.array(column, kind) for name, column in columns.items()}))


def _train_loop(trainer: Any, numbers: Hyperparameters, recorder: Recorder, checkpoint: Path | None) -> dict[str, Any]:
    """The steps that are left; what there is when the run is stopped is kept as a checkpoint."""
    if checkpoint is None:
        trainer.verify_flat_batches(trainer.train_dataset[: numbers.batch_size])
    else:
        recorder.preparing(f"Going on from the checkpoint of step {checkpoint.name}")
        trainer.resume_from(checkpoint)
    recorder.started(numbers.total_steps)
    step = trainer.run_training()
    seconds, memory = trainer.seconds, peak_memory_bytes()
    if recorder.stopping:
        if step:
            recorder.checkpoint(step, trainer.write_checkpoint)
        return {}
    recorder.final(trainer.write_adapter)
    return {**trainer.summary(), "steps": step, "seconds": round(seconds, 3), "memory_bytes": memory}


# The libraries


@contextmanager
def silence_libraries() -> Iterator[None]:
    """No progress bars, no chatter, nobody told."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    import datasets  # noqa: PLC0415 - as above

    quiet_libraries()
    datasets.disable_progress_bars()
    logging.getLogger("trl").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        if not sys.warnoptions:  # `python -W error` still shows what the libraries deprecate
            warnings.simplefilter("ignore")
        yield
