"""The engine that trains, with TRL and PEFT: load data and model, add an adapter, train, save.

The stages are implemented in `engine/hyperparameters.py`, `data/datasets.py`, `compute/models.py`,
and next to this file in `tokenization.py`, `lora.py`, `collation.py` and `sft_trainer.py` (the
training loop).
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
from typing import TYPE_CHECKING, Any

from attrs import asdict, evolve, frozen

from arkor.backend.compute import hub
from arkor.backend.compute.device import Device, choose_device
from arkor.backend.compute.models import load_model, load_tokenizer, local_folder, quiet_libraries
from arkor.backend.compute.process_tuning import peak_memory_bytes, prepare_to_compute
from arkor.backend.data.datasets import Rows, load_rows
from arkor.backend.data.download import private_urls_allowed
from arkor.backend.data.faults import MAX_FAULTS_REPORTED, Faults
from arkor.backend.data.packed_rows import PackedRows
from arkor.backend.engine.hyperparameters import (
    DRY_RUN_EVAL_ROWS,
    DRY_RUN_ROWS,
    EVAL_ROWS,
    EVAL_SHARE,
    Hyperparameters,
    check_names,
    resolve_hyperparameters,
    schedule_notes,
    setting_or_default,
)
from arkor.backend.engine.interface import Recorder, Run, RunError
from arkor.backend.training.tokenization import HOLD_OUT_VERSION, LEGACY_VERSION, VERSION, EncodedDataset, encode
from arkor.protocol.jobs import JobConfig
from arkor.settings import STARTER_MODEL

if TYPE_CHECKING:  # it imports torch
    from arkor.backend.training.lora_targets import AdapterTargets

#: The seed of all random numbers of a run.
SEED = 42


@frozen
class TrlEngine:
    """Fine-tunes on the fastest device; `precision` overrides the format of frozen weights."""

    precision: str | None = None

    def train(self, run: Run, recorder: Recorder) -> dict[str, Any]:
        """See `arkor.backend.engine.interface.Engine.train`."""
        check_names(run.config)
        prepare_to_compute()
        with silence_libraries():
            device = choose_device(self.precision)
            recorder.preparing(f"Training on {device.description}")
            check_device(run.config, device)
            saved = _saved_fingerprints(run)
            version = saved["the version of arkor"] if saved else VERSION
            rows = load_run_rows(run, recorder, version=version)
            loaded = load_run_model(run, device, recorder)
            train, evaluation = encode_rows(run, rows, loaded, recorder, version)
            hyperparameters = resolve_hyperparameters(run.config, len(train), evaluates=evaluation is not None)
            if saved and version == LEGACY_VERSION:  # which rounded the warm-up up
                warmup = saved["the configuration"]["warmup_steps"]
                hyperparameters = evolve(hyperparameters, warmup_steps=warmup)
            for note in schedule_notes(hyperparameters):
                recorder.preparing(note)
            if recorder.stopping:
                return {}
            examples = (train, evaluation)
            trainer = build_trainer(run.folder, loaded, device, examples, hyperparameters, recorder)
            return _train_loop(trainer, hyperparameters, recorder, run.checkpoint)


@frozen
class LoadedModel:
    """A model with its adapter, its tokenizer, and what the adapter adapts."""

    model: Any
    tokenizer: Any
    targets: AdapterTargets


def check_device(config: JobConfig, device: Device) -> None:
    """Raise `RunError` if 4-bit weights are requested and not supported."""
    if config.load_in_4bit and device.kind != "cuda":
        raise RunError(
            f"load_in_4bit requires an NVIDIA GPU, and this run is on {device.description}.",
            remedy="Leave load_in_4bit out: the weights are then kept in 16 or 32 bits.",
        )
    if config.load_in_4bit and importlib.util.find_spec("bitsandbytes") is None:
        raise RunError(
            "load_in_4bit requires the package bitsandbytes where the backend runs.",
            remedy="Run pip install bitsandbytes there.",
        )


#: Format → what its rows are, in which responses cannot be found.
_WITHOUT_RESPONSES = {
    "text": "plain text, which has no responses",
    "pretokenized": "tokens, whose `labels` determine what is learnt",
}


def load_run_rows(
    run: Run, recorder: Recorder, max_faults: int = MAX_FAULTS_REPORTED, *, version: int = VERSION
) -> Rows:
    """Read the rows; hold out evaluation rows for `eval_steps`; cut them for a dry run.

    A run of an earlier version always held out training rows, and keeps these when it resumes.
    """
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
        skip_bad=config.on_bad_rows == "skip",
        evaluates=config.evaluates and bool(config.eval_steps) and version > HOLD_OUT_VERSION,
        columns=(config.dataset_format or {}).get("columnMapping"),
    )
    for note in rows.notes:
        recorder.preparing(note)
    if config.train_on_responses_only and not rows.chat:
        raise RunError(
            f"train_on_responses_only is for chats, but the rows are {_WITHOUT_RESPONSES[rows.format]}.",
            remedy="Leave it out, or write the rows as messages.",
        )
    if config.eval_steps and rows.eval is None:
        if config.evaluates:
            rows = rows.hold_out(EVAL_SHARE, max_rows=EVAL_ROWS)
        else:
            recorder.preparing("The run does not evaluate: dataset_split is not enabled")
    return rows.head(DRY_RUN_ROWS, DRY_RUN_EVAL_ROWS) if config.dry_run else rows


def load_run_model(run: Run, device: Device, recorder: Recorder) -> LoadedModel:
    """Load the base model and add a new adapter, with reproducible initial weights.

    A run that resumes keeps the layers that it adapts, and the starter model's tokenizer that it
    began with, as they are in its checkpoint: a newer version may choose others.
    """
    import transformers  # noqa: PLC0415 - slow to import

    from arkor.backend.training.lora import add_adapter  # noqa: PLC0415 - as above
    from arkor.backend.training.lora_targets import choose_targets, targets_of_checkpoint  # noqa: PLC0415 - as above

    config = run.config
    folder = local_folder(config.model, run.home, recorder.preparing)
    recorder.preparing(f"Loading {config.model}")
    hub.use_cache_if_unreachable(folder, recorder.preparing)
    resumes_starter = run.checkpoint is not None and config.model == STARTER_MODEL
    tokenizer = load_tokenizer(str(run.checkpoint) if resumes_starter else folder)
    model = load_model(folder, dtype=device.dtype, **(_four_bit_options() if config.load_in_4bit else {}))
    hub.forbid_requests()
    if not config.load_in_4bit:  # these are on the GPU
        model.to(device.kind)
    if run.checkpoint is None:
        targets = choose_targets(model, config.lora_target_modules)
        recorder.preparing(f"{targets}")
    else:
        targets = targets_of_checkpoint(run.checkpoint)
    transformers.set_seed(SEED)
    settings = {name: setting_or_default(config, f"lora_{name}") for name in ("r", "alpha")}
    return LoadedModel(add_adapter(model, targets, **settings), tokenizer, targets)


def _four_bit_options() -> dict[str, Any]:
    """Return the options of QLoRA: 4-bit frozen weights, bf16 arithmetic."""
    import torch  # noqa: PLC0415 - as above
    import transformers  # noqa: PLC0415 - as above

    quantization = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {"quantization_config": quantization, "device_map": {"": 0}}


def _saved_fingerprints(run: Run) -> dict[str, Any]:
    """Return the fingerprints in the checkpoint to resume from; nothing for a new run."""
    from arkor.backend.training.training_state import saved_fingerprints  # noqa: PLC0415 - slow to import

    return saved_fingerprints(run.checkpoint) if run.checkpoint else {}


def encode_rows(  # noqa: PLR0917 - they have no order to mistake
    run: Run,
    rows: Rows,
    loaded: LoadedModel,
    recorder: Recorder,
    version: int = VERSION,
    max_faults: int = MAX_FAULTS_REPORTED,
) -> tuple[EncodedDataset, EncodedDataset | None]:
    """Tokenize the training rows, and the evaluation rows if there are any."""
    config = run.config
    length = max_length_of(config, loaded.model)
    answers_only = rows.chat if config.train_on_responses_only is None else config.train_on_responses_only
    faults = Faults(rows.name, max_faults)

    def encoded(split: str, part: PackedRows) -> EncodedDataset:
        recorder.preparing(f"Tokenizing {len(part)} {split} rows")
        options: dict[str, Any] = {
            "answers_only": answers_only,
            "max_length": length,
            "date": run.date,
            "version": version,
        }
        dataset = encode(part, loaded.tokenizer, faults=faults, **options)
        for note in dataset.notes(split, length):
            recorder.preparing(note)
        return dataset

    train = encoded("training", rows.train)
    evaluation = encoded("evaluation", rows.eval) if rows.eval else None
    if faults.count and (config.on_bad_rows != "skip" or not len(train)):
        raise faults.error()
    train.skipped = tuple(faults.notes())
    for note in train.skipped:
        recorder.preparing(note)
    return train, evaluation if evaluation is not None and len(evaluation) else None


def max_length_of(config: JobConfig, model: Any) -> int:
    """Return the maximum tokens per row, at most the context length of the model."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if config.max_length and limit and config.max_length > limit:
        raise RunError(f"max_length is {config.max_length}, but {config.model} takes at most {limit} tokens.")
    length: int = setting_or_default(config, "max_length")
    return min(length, limit) if limit else length


def training_arguments(hyperparameters: Hyperparameters, device: Device) -> dict[str, Any]:
    """Return the arguments of TRL's `SFTConfig`; arguments not listed here have our names."""
    renamed = {
        "total_steps": "max_steps",
        "batch_size": "per_device_train_batch_size",
        "schedule_settings": "lr_scheduler_kwargs",
    }
    return {
        **{renamed.get(name, name): value for name, value in asdict(hyperparameters).items()},
        "per_device_eval_batch_size": hyperparameters.batch_size,
        "save_strategy": "steps",
        "eval_strategy": "steps" if hyperparameters.eval_steps else "no",
        "seed": SEED,
        "logging_nan_inf_filter": False,  # report losses that diverged
        "use_cpu": device.kind == "cpu",
        "bf16": False,  # no autocast: the weights have the right format already
        "dataloader_pin_memory": device.kind == "cuda",
        "remove_unused_columns": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "max_length": None,  # the rows are cut already
        "report_to": "none",
        "disable_tqdm": True,
    }


def build_trainer(  # noqa: PLR0917 - they have no order to mistake
    folder: Path,
    loaded: LoadedModel,
    device: Device,
    examples: tuple[EncodedDataset, EncodedDataset | None],
    hyperparameters: Hyperparameters,
    recorder: Recorder,
) -> Any:
    """Return a `LeanSFTTrainer` for the (training, evaluation) `examples`."""
    from trl import SFTConfig  # noqa: PLC0415 - as above

    from arkor.backend.training.sft_trainer import Collator, LeanSFTTrainer  # noqa: PLC0415 - as above
    from arkor.backend.training.training_state import fingerprints  # noqa: PLC0415 - as above

    train, evaluation = examples
    is_large = sum(weight.numel() for weight in loaded.model.parameters()) > 1e9
    recompute = {recompute_argument(SFTConfig): is_large and device.kind != "cpu"}  # saves GPU memory
    return LeanSFTTrainer(
        recorder=recorder,
        fingerprints=fingerprints(hyperparameters, loaded.model, train, evaluation),
        model=loaded.model,
        args=SFTConfig(output_dir=str(folder), **recompute, **training_arguments(hyperparameters, device)),
        processing_class=loaded.tokenizer,
        data_collator=Collator(device.dtype, loaded.tokenizer.pad_token_id),
        train_dataset=_arrow_table(train),
        eval_dataset=_arrow_table(evaluation) if evaluation else None,
    )


def recompute_argument(config_class: type) -> str:
    """Return the name of the option to recompute activations, which transformers 5.24 renamed."""
    names = {field.name for field in dataclasses.fields(config_class)}
    return "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"


def _arrow_table(examples: EncodedDataset) -> Any:
    """Return an Arrow table of int32 lists in memory: 4 bytes per token and column."""
    import datasets  # noqa: PLC0415 - as above
    import pyarrow as arrow  # noqa: PLC0415 - as above

    kind = arrow.list_(arrow.int32())
    columns = {"input_ids": examples.input_ids, "labels": examples.labels}
    return datasets.Dataset(arrow.table({name: arrow.array(column, kind) for name, column in columns.items()}))


def _train_loop(
    trainer: Any, hyperparameters: Hyperparameters, recorder: Recorder, checkpoint: Path | None
) -> dict[str, Any]:
    """Run the remaining steps and return metrics; save a checkpoint if stopped."""
    if checkpoint is None:
        recorder.preparing(f"{trainer.choose_layout()}")
    else:
        recorder.preparing(f"Resuming from the checkpoint of step {checkpoint.name}")
        trainer.resume_from(checkpoint)
    recorder.started(hyperparameters.total_steps)
    step = trainer.run_training()
    seconds, memory = trainer.seconds, peak_memory_bytes()
    if recorder.stopping:
        if step:
            recorder.checkpoint(step, trainer.write_checkpoint)
        return {}
    recorder.final(trainer.write_adapter)
    return {**trainer.last_losses, "steps": step, "seconds": round(seconds, 3), "memory_bytes": memory}


@contextmanager
def silence_libraries() -> Iterator[None]:
    """Disable progress bars, log messages, warnings and telemetry of the libraries."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    import datasets  # noqa: PLC0415 - as above

    quiet_libraries()
    datasets.disable_progress_bars()
    logging.getLogger("trl").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        if not sys.warnoptions:  # `python -W error` still reports deprecations
            warnings.simplefilter("ignore")
        yield
