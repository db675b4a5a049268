"""The engine with tiny models: it learns, its losses are exact, and each setting has its effect."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from arkor.backend.compute.models import CONVERSION_VERSION
from arkor.backend.data.file_readers import DataError
from arkor.backend.engine.interface import Run, RunError
from arkor.backend.training import trl_engine
from arkor.backend.training.tokenization import HOLD_OUT_VERSION, LEGACY_VERSION
from arkor.backend.training.trl_engine import TrlEngine, recompute_argument
from arkor.protocol.datasets import BlobDataset, HuggingFaceDataset
from arkor.protocol.jobs import JobConfig
from arkor.settings import STARTER_MODEL
from tests.conftest import install_older_starter
from tests.fakes.memory_recorder import MemoryRecorder
from tests.fakes.tiny_model import ARCHITECTURES, CHATML, make_tiny_model

pytestmark = pytest.mark.slow

WORDS = ("apple", "stone", "river", "cloud")


def chat(number: int, *, system: bool = True) -> dict[str, Any]:
    turns = [
        {"role": "user", "content": f"What is {'ABCD'[number % 4]}?"},
        {"role": "assistant", "content": WORDS[number % 4]},
    ]
    return {"messages": [{"role": "system", "content": "Answer in one word."}] * system + turns}


CHATS = [chat(number) for number in range(24)]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "llama")


class Bench:
    """Runs of the engine below one folder."""

    def __init__(self, home: Path, model: Path) -> None:
        self.home = home
        self.model = model
        self.runs = 0

    def source(self, rows: list[dict[str, Any]]) -> BlobDataset:
        data = "\n".join(json.dumps(row) for row in rows).encode()
        digest = hashlib.sha256(data).hexdigest()
        (self.home / "datasets").mkdir(parents=True, exist_ok=True)
        (self.home / "datasets" / digest).write_bytes(data)
        return BlobDataset(f"/v1/datasets/{digest}/rows.jsonl")

    def run(
        self,
        rows: list[dict[str, Any]] | None = None,
        *,
        precision: str = "float32",
        stop_at: int | None = None,
        checkpoint: Path | None = None,
        resume: MemoryRecorder | None = None,
        date: datetime | None = None,
        **fields: Any,
    ) -> MemoryRecorder:
        fields = {"max_steps": 4, "batch_size": 4, "learning_rate": 1e-2, "warmup_steps": 0, **fields}
        config = JobConfig(str(self.model), self.source(rows or CHATS), **fields)
        config.check()
        self.runs += 1
        folder = self.home / "runs" / str(self.runs)
        folder.mkdir(parents=True)
        notebook = MemoryRecorder(folder, stop_at)
        if resume:
            checkpoint = resume.folder / "checkpoints" / str(resume.checkpoints[-1])
        run = Run("job", config, folder, self.home, checkpoint=checkpoint, date=date)
        notebook.metrics = TrlEngine(precision).train(run, notebook)
        return notebook


@pytest.fixture
def bench(tmp_path: Path, llama: Path) -> Bench:
    return Bench(tmp_path, llama)


@pytest.fixture
def hub_bench(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Runs on a hub data set with a validation split."""
    folder = tmp_path / "acme" / "tickets"
    folder.mkdir(parents=True)
    for split, rows in (("train", CHATS), ("validation", CHATS[:3])):
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(bench, "source", lambda _: HuggingFaceDataset("acme/tickets"))
    return bench


@pytest.fixture(scope="module")
def plain_losses(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of a run with the settings of `Bench`."""
    return Bench(tmp_path_factory.mktemp("plain"), llama).run().losses


# A run


def test_a_run_learns_and_leaves_an_adapter_that_peft_loads(bench: Bench) -> None:
    from peft import PeftModel  # noqa: PLC0415 - collecting tests loads no torch
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415 - as above

    notebook = bench.run(max_steps=40, batch_size=8, learning_rate=2e-2)
    assert notebook.losses[-1] < notebook.losses[0] / 3
    assert notebook.total_steps == 40
    assert notebook.checkpoints == [8, 16, 24, 32, 40]
    assert notebook.finished
    assert [log["step"] for log in notebook.logs] == list(range(1, 41))
    assert all(log["samples_per_second"] > 0 for log in notebook.logs)
    assert notebook.logs[-1]["epoch"] == pytest.approx(40 / 3)
    assert notebook.metrics["loss"] == notebook.losses[-1]
    files = {file.name for file in (notebook.folder / "final").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer_config.json"} <= files
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in files)
    model = AutoModelForCausalLM.from_pretrained(bench.model)
    tokenizer = AutoTokenizer.from_pretrained(notebook.folder / "final")
    tuned = PeftModel.from_pretrained(model, notebook.folder / "final")
    text = tokenizer.apply_chat_template(chat(5)["messages"][:-1], tokenize=False, add_generation_prompt=True)
    inputs = tokenizer(text, return_tensors="pt")
    answer = tuned.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs.input_ids.shape[1] :]
    assert tokenizer.decode(answer).startswith("stone")


def test_training_and_evaluation_use_nothing_deprecated(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "warnoptions", ["error"])  # as under `python -W error`
    assert len(bench.run(eval_steps=2).losses) == 4


def test_the_same_run_twice_has_the_same_losses(bench: Bench) -> None:
    assert bench.run(eval_steps=2).logs_without_speed() == bench.run(eval_steps=2).logs_without_speed()


def test_a_diverging_run_logs_nan_and_continues(bench: Bench) -> None:
    notebook = bench.run(learning_rate=1e6, max_steps=8)
    assert math.isnan(notebook.losses[-1])
    assert len(notebook.losses) == 8
    assert notebook.finished


def test_a_stopped_run_saves_a_checkpoint(bench: Bench) -> None:
    notebook = bench.run(max_steps=40, stop_at=3)
    assert notebook.losses
    assert len(notebook.losses) <= 4
    assert not notebook.finished
    assert notebook.checkpoints[-1] in (3, 4)
    assert (notebook.folder / "checkpoints" / str(notebook.checkpoints[-1]) / "adapter_model.safetensors").exists()


def test_progress_is_reported(bench: Bench) -> None:
    messages = bench.run().messages
    assert messages[0].startswith("Training on the CPU, ")
    assert "Tokenizing 24 training rows" in messages


# Settings that affect learning


def final_config(notebook: MemoryRecorder) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((notebook.folder / "final" / "adapter_config.json").read_text())
    return config


def test_lora_r_and_alpha(bench: Bench) -> None:
    plain = bench.run()
    assert (final_config(plain)["r"], final_config(plain)["lora_alpha"]) == (16, 16)
    other = bench.run(lora_r=2, lora_alpha=64.0)
    assert (final_config(other)["r"], final_config(other)["lora_alpha"]) == (2, 64)
    assert plain.losses != other.losses


@pytest.mark.parametrize(
    "fields",
    [
        {"learning_rate": 1e-3},
        {"optim": "sgd"},
        {"optim": "adafactor"},
        {"lr_scheduler_type": "constant"},
        {"weight_decay": 0.9, "learning_rate": 0.3},
        {"warmup_steps": 3},
        {"warmup_steps": 0.5},
        {"batch_size": 2},
        {"train_on_responses_only": False},
        {"max_length": 61},
        {"dataset_split": "train[:8]"},
    ],
)
def test_a_setting_changes_the_losses(bench: Bench, plain_losses: list[float], fields: dict[str, Any]) -> None:
    base = bench.run(learning_rate=fields["learning_rate"]).losses if "weight_decay" in fields else plain_losses
    assert bench.run(**fields).losses != base


@pytest.mark.parametrize("name", ["cosine", "cosine_with_min_lr", "warmup_stable_decay", "inverse_sqrt", "polynomial"])
def test_every_schedule_sets_the_learning_rate(bench: Bench, name: str) -> None:
    rates = [log["learning_rate"] for log in bench.run(max_steps=8, lr_scheduler_type=name).logs]
    assert rates[0] == pytest.approx(1e-2)
    assert rates[-1] < rates[0]


def test_the_default_schedule_decreases_to_zero(bench: Bench) -> None:
    rates = [log["learning_rate"] for log in bench.run(max_steps=4).logs]
    assert rates == pytest.approx([1e-2, 7.5e-3, 5e-3, 2.5e-3])


def test_epochs_logging_and_saving(bench: Bench) -> None:
    notebook = bench.run(max_steps=None, num_train_epochs=2.0, batch_size=6, logging_steps=3, save_steps=5)
    assert notebook.total_steps == 8
    assert [log["step"] for log in notebook.logs] == [3, 6, 8]
    assert notebook.checkpoints == [5, 8]


def test_rows_that_are_tokens_train_like_the_text_that_they_are_of(bench: Bench) -> None:
    from transformers import AutoTokenizer  # noqa: PLC0415 - collecting tests loads no torch

    tokenizer = AutoTokenizer.from_pretrained(bench.model)
    texts = [f"The {word} is here." for word in WORDS] * 4
    plain = bench.run([{"text": text} for text in texts])
    bos = [tokenizer.bos_token_id] if tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id] else []
    ids = [bos + tokenizer(text, add_special_tokens=False).input_ids + [tokenizer.eos_token_id] for text in texts]
    assert bench.run([{"input_ids": row} for row in ids]).losses == plain.losses
    last = [{"input_ids": row, "labels": [-100] * (len(row) - 1) + row[-1:]} for row in ids]
    assert bench.run(last).losses != plain.losses
    foreign = [{"input_ids": row} for row in [*ids, [1, 999_999]]]
    with pytest.raises(DataError, match=rf"line {len(foreign)}: the token 999999 is not one of the"):
        bench.run(foreign)
    assert bench.run(foreign, on_bad_rows="skip").losses == plain.losses
    with pytest.raises(RunError, match="tokens, whose `labels` determine"):
        bench.run(last, train_on_responses_only=True)


def test_an_evaluation_that_is_not_enabled(bench: Bench) -> None:
    assert bench.run(eval_steps=2, dataset_split={"enabled": False}).eval_steps == []
    assert bench.run(eval_steps=0.5, dataset_split={"enabled": True, "testSize": 4}).eval_steps == [2, 4]


def test_an_evaluation_that_is_not_enabled_leaves_the_validation_split_alone(hub_bench: Bench) -> None:
    notebook = hub_bench.run(eval_steps=2, dataset_split={"enabled": False})
    assert notebook.eval_steps == []
    assert "The run does not evaluate: dataset_split is not enabled" in notebook.messages
    assert "Tokenizing 24 training rows" in notebook.messages
    assert hub_bench.run(eval_steps=2).eval_steps == [2, 4]


def test_eval_steps_hold_out_rows(bench: Bench) -> None:
    notebook = bench.run(eval_steps=2)
    assert notebook.eval_steps == [2, 4]
    assert "Tokenizing 22 training rows" in notebook.messages
    assert "Tokenizing 2 evaluation rows" in notebook.messages


def test_a_split_with_eval_rows_is_evaluated_at_checkpoints(bench: Bench) -> None:
    notebook = bench.run(dataset_split={"train": "train[:20]", "eval": "train[20:]"}, save_steps=2)
    assert notebook.eval_steps == [2, 4]


def test_evaluation_is_the_mean_over_tokens(bench: Bench) -> None:
    """At a negligible learning rate, training and evaluation log the same loss."""
    split = {"train": "train[:8]", "eval": "train[:8]"}
    notebook = bench.run(dataset_split=split, learning_rate=1e-12, max_steps=1, batch_size=8)
    (train,), (evaluation,) = notebook.losses, [log["eval_loss"] for log in notebook.logs if "eval_loss" in log]
    assert train == pytest.approx(evaluation, rel=1e-5)


def test_a_dry_run_reaches_every_stage(bench: Bench) -> None:
    rows = [chat(number) for number in range(200)]
    notebook = bench.run(rows, dry_run=True, max_steps=1000, eval_steps=100)
    assert notebook.total_steps == 10
    assert "Tokenizing 50 training rows" in notebook.messages
    assert notebook.checkpoints
    assert notebook.eval_steps
    assert notebook.finished


def test_max_length_cuts_rows_and_reports_it(bench: Bench) -> None:
    long = chat(1)
    long["messages"][1] = {"role": "user", "content": "x" * 300}
    notebook = bench.run([*CHATS, long])
    assert all(math.isfinite(loss) for loss in notebook.losses)
    assert "1 of 25 training rows are longer than 256 tokens (max_length) and are cut" in notebook.messages
    assert "1 of 25 training rows are left out: their answers start after max_length" in notebook.messages


def test_no_label_within_max_length_is_an_error(bench: Bench) -> None:
    with pytest.raises(RunError, match="increase max_length"):
        bench.run(max_length=8)


def test_max_length_above_the_context_is_an_error(bench: Bench) -> None:
    with pytest.raises(RunError, match=r"max_length is 5000, but .* takes at most 256 tokens"):
        bench.run(max_length=5000)


def test_four_bits_require_a_gpu(bench: Bench) -> None:
    with pytest.raises(RunError, match="load_in_4bit requires an NVIDIA GPU, and this run is on the CPU"):
        bench.run(load_in_4bit=True)


def test_all_tokens_of_plain_text_are_labelled(bench: Bench) -> None:
    rows = [{"text": f"The word of {number} is {WORDS[number % 4]}."} for number in range(24)]
    assert bench.run(rows).losses
    with pytest.raises(RunError, match="train_on_responses_only is for chats"):
        bench.run(rows, train_on_responses_only=True)


def test_the_configured_format_is_used(bench: Bench) -> None:
    rows = [{"text": "Only this.", **row} for row in CHATS]
    assert bench.run(rows).losses != bench.run(rows, dataset_format={"type": "text"}).losses


def test_bad_rows_are_reported_by_line(tmp_path: Path) -> None:
    strict = "{% if 'D?' in messages[0].content %}{{ raise_exception('No D') }}{% endif %}" + CHATML
    bench = Bench(tmp_path, make_tiny_model(tmp_path / "model", "llama", strict))
    rows = [chat(number, system=False) for number in range(12)]
    with pytest.raises(RunError) as raised:
        bench.run(rows, dataset_split=0.5)
    listed = str(raised.value).splitlines()
    assert listed[0] == "rows.jsonl has 3 bad rows; nothing was trained:"
    assert sorted(listed[1:]) == sorted(
        f"  line {line}: the chat template of the model rejects it (No D)" for line in (4, 8, 12)
    )
    notebook = bench.run(rows, on_bad_rows="skip")
    [note] = [message for message in notebook.messages if "skipped" in message]
    assert note.startswith("3 bad rows of rows.jsonl skipped: line 4: the chat template of the model rejects it")


def test_a_run_keeps_its_date_when_it_is_resumed(tmp_path: Path) -> None:
    dated = "{{ strftime_now('%d %b %Y') }}" + CHATML
    bench = Bench(tmp_path, make_tiny_model(tmp_path / "model", "llama", dated))
    date = datetime(2025, 5, 9)
    stopped = bench.run(stop_at=2, save_steps=100, date=date)
    assert bench.run(resume=stopped, save_steps=100, date=date).finished
    with pytest.raises(RunError, match="the rows to train on changed"):
        bench.run(resume=stopped, save_steps=100, date=datetime(2025, 5, 10))


def test_a_run_of_the_first_version_is_resumed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows are labelled as they were, although a new run labels them otherwise."""
    first = [{"role": "assistant", "content": "Welcome."}]
    rows = [{"messages": [*first, *row["messages"][1:]]} for row in CHATS]
    fields = {"warmup_steps": 1, "save_steps": 100}
    monkeypatch.setattr(trl_engine, "VERSION", LEGACY_VERSION)
    stopped = bench.run(rows, stop_at=2, **fields)
    monkeypatch.undo()
    resumed = bench.run(rows, resume=stopped, **fields)
    assert resumed.finished
    assert bench.run(rows, **fields).losses[-1] != resumed.losses[-1]


@pytest.mark.parametrize("version", [LEGACY_VERSION, HOLD_OUT_VERSION])
def test_a_run_of_an_older_version_keeps_the_rows_that_it_held_out(
    hub_bench: Bench, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    """A new run evaluates on the validation split of the hub data set instead."""
    fields = {"warmup_steps": 1, "save_steps": 100, "eval_steps": 2}
    with monkeypatch.context() as older_version:
        older_version.setattr(trl_engine, "VERSION", version)
        stopped = hub_bench.run(stop_at=1, **fields)
    resumed = hub_bench.run(resume=stopped, **fields)
    assert resumed.finished
    assert "Tokenizing 22 training rows" in resumed.messages
    assert "Tokenizing 24 training rows" in hub_bench.run(**fields).messages


def test_the_end_of_a_turn_is_an_end_token_of_the_adapter(tmp_path: Path) -> None:
    """A base model's tokenizer often has another end token than its chat template."""
    template = CHATML.replace("<|im_end|>", "<|im_start|>")
    bench = Bench(tmp_path, make_tiny_model(tmp_path / "model", "llama", template))
    notebook = bench.run()
    settings = json.loads((notebook.folder / "final" / "generation_config.json").read_text())
    assert settings["eos_token_id"] == [2, 1]


# Models


@pytest.mark.parametrize("architecture", sorted(set(ARCHITECTURES) - {"llama"}))
def test_every_architecture_learns(tmp_path: Path, architecture: str) -> None:
    bench = Bench(tmp_path, make_tiny_model(tmp_path / "model", architecture))
    notebook = bench.run(max_steps=30, batch_size=8, learning_rate=2e-2)
    assert notebook.losses[-1] < 0.8 * notebook.losses[0]
    assert final_config(notebook)["target_modules"]


def test_a_model_without_a_chat_template_learns(tmp_path: Path) -> None:
    bench = Bench(tmp_path, make_tiny_model(tmp_path / "model", "gpt2", None))
    notebook = bench.run(max_steps=30, batch_size=8, learning_rate=2e-2)
    assert notebook.losses[-1] < 0.8 * notebook.losses[0]


def test_a_row_that_the_template_rejects_is_reported(tmp_path: Path) -> None:
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system role here') }}{% endif %}" + CHATML
    bench = Bench(tmp_path, make_tiny_model(tmp_path / "model", "llama", strict))
    with pytest.raises(RunError, match=r"line 1: the chat template of the model rejects it .*No system role here"):
        bench.run()


# Exactness


@pytest.mark.filterwarnings("ignore:fan_in_fan_out:UserWarning")  # PEFT, of GPT-2's transposed layers
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "bloom", "mistral", "mamba"])
def test_losses_equal_plain_trl(tmp_path: Path, architecture: str) -> None:
    """Plain SFTTrainer has the same loss at each step, and so the same gradients."""
    bench = Bench(tmp_path, make_tiny_model(tmp_path / "model", architecture))
    fields = {"optim": "adamw_torch", "learning_rate": 1e-3}
    ours = bench.run(**fields).losses
    assert ours == pytest.approx(_plain_trl(bench, tmp_path), rel=1e-4)


def _plain_trl(bench: Bench, folder: Path) -> list[float]:
    import torch  # noqa: PLC0415 - as above
    from datasets import Dataset  # noqa: PLC0415 - as above
    from peft import LoraConfig  # noqa: PLC0415 - as above
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed  # noqa: PLC0415 - as above
    from trl import SFTConfig, SFTTrainer  # noqa: PLC0415 - as above

    from arkor.backend.training.lora import target_modules  # noqa: PLC0415 - as above
    from arkor.backend.training.trl_engine import SEED  # noqa: PLC0415 - as above

    model = AutoModelForCausalLM.from_pretrained(bench.model, dtype=torch.float32)
    rows = [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in CHATS]
    arguments = SFTConfig(
        output_dir=str(folder / "plain"),
        max_steps=4,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        lr_scheduler_type="linear",
        optim="adamw_torch",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        seed=SEED,
        bf16=False,
        use_cpu=True,
        disable_tqdm=True,
        **{recompute_argument(SFTConfig): False},
    )
    set_seed(SEED)
    targets = target_modules(model)
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(bench.model),
        peft_config=LoraConfig(r=16, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM", lora_dropout=0.0),
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


# Runs that an older version began


def test_a_run_of_the_starter_model_resumes_with_the_tokenizer_that_it_began_with(
    tmp_path: Path, starter: Path
) -> None:
    """The home gets a newer conversion of the tokenizer while the run is stopped."""
    folder = install_older_starter(tmp_path, starter)
    (folder / "conversion.json").write_text(json.dumps({"version": CONVERSION_VERSION}))
    rows = [{"messages": [*chat(n)["messages"][:-1], {"role": "assistant", "content": f"a\n\n{n}."}]} for n in range(4)]
    bench = Bench(tmp_path, Path(STARTER_MODEL))
    stopped = bench.run(rows, stop_at=1, max_steps=2, batch_size=2, save_steps=2)
    (folder / "conversion.json").unlink()
    resumed = bench.run(rows, max_steps=2, batch_size=2, save_steps=2, checkpoint=stopped.folder / "checkpoints" / "1")
    assert any("Converting the tokenizer of the starter model again" in message for message in resumed.messages)
    assert [log["step"] for log in resumed.logs] == [2]
    assert resumed.finished
