"""Compare training and answers of a tiny model with the plain Hugging Face model.

The plain model computes one row at a time, in evaluation mode, with the adapter that PEFT loads.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from attrs import define
from peft import PeftModel
from torch.nn.functional import cross_entropy

from arkor.backend.compute.device import choose_device
from arkor.backend.engine.hyperparameters import resolve_hyperparameters
from arkor.backend.engine.interface import Run
from arkor.backend.inference import model_cache
from arkor.backend.inference.generator import ModelGenerator
from arkor.backend.inference.messages import CompletionRequest, Delta, Done
from arkor.backend.training.tokenization import IGNORE_INDEX
from arkor.backend.training.trl_engine import (
    TrlEngine,
    build_trainer,
    encode_rows,
    load_run_model,
    load_run_rows,
    silence_libraries,
)
from arkor.protocol.datasets import BlobDataset
from arkor.protocol.jobs import JobConfig
from tests.fakes.memory_recorder import MemoryRecorder
from tests.families.tiny import make_tiny

#: The largest relative difference of losses and gradients.
TOLERANCE = 1e-4

WORDS = ("apple", "stone", "river", "cloud")

#: Messages of different lengths, some of which begin the same.
QUESTIONS = ("What is A?", "Say one word about the letter B, please.", "C", "And what, then, would D stand for here?")


def row(number: int) -> dict[str, Any]:
    """Return a row of a small task: a letter stands for a word."""
    return {
        "messages": [
            {"role": "system", "content": "Answer in one word."},
            {"role": "user", "content": QUESTIONS[number % 4] + " Now!" * (number % 3)},
            {"role": "assistant", "content": WORDS[number % 4]},
        ]
    }


@define
class Report:
    """The result for a family: its layout, relative differences, and the problems that were found."""

    family: str
    layout: str = ""
    layout_name: str = ""
    adapted: str = ""
    share: str = ""
    towers: int = 0
    loss: float | None = None
    gradient: float | None = None
    trained_loss: float | None = None
    trained_gradient: float | None = None
    adapter: float | None = None
    learns: bool | None = None
    answers: str = ""
    error: str = ""

    @property
    def problems(self) -> list[str]:
        """What is not right."""
        found = [self.error] if self.error else []
        for name in ("loss", "gradient", "trained_loss", "trained_gradient", "adapter"):
            value = getattr(self, name)
            if value is not None and not value <= TOLERANCE:
                found.append(f"{name} {value:.1e}")
        found += ["adapted towers"] if self.towers else []
        found += [self.answers] if self.answers else []
        return found


class Bench:
    """A tiny model of one family, with a run."""

    def __init__(self, folder: Path, family: str, *, rows: int = 24) -> None:
        self.home = folder
        self.family = family
        self.model = make_tiny(folder / "model", family)
        data = "\n".join(json.dumps(row(number)) for number in range(rows)).encode()
        digest = hashlib.sha256(data).hexdigest()
        (folder / "datasets").mkdir(parents=True)
        (folder / "datasets" / digest).write_bytes(data)
        self.source = BlobDataset(f"/v1/datasets/{digest}/rows.jsonl")

    def config(self, **fields: Any) -> JobConfig:
        """Return the configuration of a run."""
        settings: dict[str, Any] = {"max_steps": 4, "batch_size": 4, "learning_rate": 2e-3, "warmup_steps": 0}
        return JobConfig(str(self.model), self.source, **{**settings, **fields})

    def trainer(self, name: str = "run", **fields: Any) -> Any:
        """Return the trainer of a run whose layout is chosen."""
        config = self.config(**fields)
        folder = self.home / name
        folder.mkdir()
        run, recorder, device = Run("job", config, folder, self.home), MemoryRecorder(folder), choose_device("float32")
        rows = load_run_rows(run, recorder)
        loaded = load_run_model(run, device, recorder)
        examples = encode_rows(run, rows, loaded, recorder)
        hyperparameters = resolve_hyperparameters(config, len(examples[0]), evaluates=False)
        trainer = build_trainer(folder, loaded, device, examples, hyperparameters, recorder)
        trainer.notes = recorder.messages
        return trainer

    def plain_model(self, adapter: Path | None = None) -> Any:
        """Return the model as transformers and PEFT load it."""
        causal = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        auto = transformers.AutoModelForCausalLM if self.family in causal else transformers.AutoModelForImageTextToText
        model = auto.from_pretrained(self.model, dtype=torch.float32)
        return (model if adapter is None else PeftModel.from_pretrained(model, adapter, is_trainable=True)).eval()

    def run(
        self, name: str, stop_at: int | None = None, checkpoint: Path | None = None, **fields: Any
    ) -> MemoryRecorder:
        """Train with the engine, and return what it reported."""
        folder = self.home / name
        folder.mkdir()
        recorder = MemoryRecorder(folder, stop_at)
        run = Run("job", self.config(**fields), folder, self.home, checkpoint=checkpoint)
        recorder.metrics = TrlEngine("float32").train(run, recorder)
        return recorder


def randomize_adapter(model: Any) -> None:
    """Give all weights of an adapter random values, so that all of them get a gradient."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.05)


def compare_step(bench: Bench, trainer: Any, folder: Path) -> tuple[float, float]:
    """Return the relative differences of loss and gradient between a step and the plain model.

    Where rounding alone moves the plain model's gradient further than a quarter of the difference,
    which fp64 shows, the difference counts as none.
    """
    trainer.write_adapter(folder)
    examples = [trainer.train_dataset[number] for number in range(6)]
    trainer.model.zero_grad()
    loss = trainer.training_step(trainer.model, trainer.data_collator(examples)).item()
    ours = _gradients(trainer.model)
    trainer.model.zero_grad()
    plain = bench.plain_model(folder)
    expected = plain_step(plain, examples)
    theirs = _gradients(plain)
    assert ours.keys() == theirs.keys()
    difference = _distance(ours, theirs)
    if difference > TOLERANCE:
        exact = bench.plain_model(folder).double()
        plain_step(exact, examples)
        difference = 0.0 if difference <= 4 * _distance(theirs, _gradients(exact)) else difference
    return abs(loss - expected) / abs(expected), difference


def _distance(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """Return the difference of two gradients, relative to the expected one."""
    difference = sum(((found[name] - expected[name]) ** 2).sum().item() for name in expected) ** 0.5
    return float(difference / sum((gradient**2).sum().item() for gradient in expected.values()) ** 0.5)


def _gradients(model: Any) -> dict[str, Any]:
    return {
        name: torch.zeros_like(weight) if weight.grad is None else weight.grad.clone()
        for name, weight in model.named_parameters()
        if weight.requires_grad
    }


def plain_step(model: Any, examples: Sequence[dict[str, Any]]) -> float:
    """Compute the loss of a batch one row at a time, backward too."""
    count = sum(label != IGNORE_INDEX for example in examples for label in example["labels"][1:])
    accepted = inspect.signature(model.get_base_model().forward).parameters
    options = {"use_cache": False} if "use_cache" in accepted else {}
    total = 0.0
    for example in examples:
        logits = model(input_ids=torch.tensor([example["input_ids"]]), **options).logits[0, :-1]
        labels = torch.tensor(example["labels"])[1:]
        loss = cross_entropy(logits.float(), labels, ignore_index=IGNORE_INDEX, reduction="sum") / count
        loss.backward()
        total += loss.item()
    return total


def compare_logits(bench: Bench, trainer: Any, folder: Path) -> float:
    """Return the relative difference of the logits of a saved adapter in plain PEFT."""
    ids = torch.tensor([trainer.train_dataset[1]["input_ids"]])
    with torch.no_grad():
        ours = trainer.model.eval()(input_ids=ids).logits
        theirs = bench.plain_model(folder)(input_ids=ids).logits
    return float((ours - theirs).abs().max() / theirs.abs().max())


MESSAGES = [
    [{"role": "user", "content": text}] for text in ("Hello there", "What is B?", "a", "Tell me more of it, now")
]


def check_answers(bench: Bench, adapter: Path) -> str:
    """Compare answers with `generate`: alone, joined in flight, and after others left."""
    os.environ["ARKOR_SERVING_ENGINE"] = "transformers"
    model_cache.choose_device = lambda: choose_device("float32")  # type: ignore[attr-defined]
    for folder in (None, adapter):
        limits = (24, 5, 16, 9)
        plain = bench.plain_model(folder)
        expected = [plain_answer(bench, plain, m, limit) for m, limit in zip(MESSAGES, limits, strict=True)]
        requests = [
            CompletionRequest(str(n), str(bench.model), folder and str(folder), m, max_tokens=limit)
            for n, (m, limit) in enumerate(zip(MESSAGES, limits, strict=True))
        ]
        generator = ModelGenerator(bench.home)
        alone = [answer(generator, [request])[request.id] for request in requests[:2]]
        if alone != expected[:2]:
            return f"answers alone differ from generate: {alone} {expected[:2]}"
        together = answer(generator, requests)
        if [together[request.id] for request in requests] != expected:
            return "answers together differ from generate"
    return ""


def plain_answer(bench: Bench, model: Any, messages: Any, limit: int) -> str:
    """Return the answer of `generate` of transformers."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(bench.model)
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
    out = model.generate(
        input_ids=ids.input_ids, attention_mask=ids.attention_mask, max_new_tokens=limit, do_sample=False
    )
    return str(tokenizer.decode(out[0, ids.input_ids.shape[1] :], skip_special_tokens=True))


def answer(generator: ModelGenerator, requests: Sequence[CompletionRequest]) -> dict[str, str]:
    """Return the answers to requests that come one after the other."""
    texts = {request.id: "" for request in requests}
    waiting = list(requests)
    deadline = time.monotonic() + 120
    while waiting or generator.busy:
        assert time.monotonic() < deadline
        if waiting:
            generator.submit(waiting.pop(0))
        for reply in generator.step():
            if isinstance(reply, Delta):
                texts[reply.id] += reply.text
            elif not isinstance(reply, Done):
                texts[reply.id] = f"failed: {reply}"
    return texts


def check(family: str, folder: Path, *, steps: int = 200) -> Report:
    """Make a tiny model of the family and check everything."""
    report = Report(family)
    stages: list[Callable[[Report, Bench, int], None]] = [_check_training, _check_answers]
    try:
        with silence_libraries():
            bench = Bench(folder, family)
    except Exception as error:  # noqa: BLE001 - it is the report
        report.error = f"cannot be made: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return report
    report.error = " ".join(filter(None, (_problem_in(stage, report, bench, steps) for stage in stages)))
    return report


def _problem_in(stage: Callable[[Report, Bench, int], None], report: Report, bench: Bench, steps: int) -> str:
    try:
        with silence_libraries():
            stage(report, bench, steps)
    except Exception as error:  # noqa: BLE001 - it is the report
        return f"{stage.__name__}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return ""


def _check_training(report: Report, bench: Bench, steps: int) -> None:
    trainer = bench.trainer(max_steps=steps, save_steps=steps)
    choice = trainer.choose_layout()
    report.layout, report.layout_name = str(choice), choice.layout.value
    report.adapted = next(note for note in trainer.notes if note.startswith("LoRA"))
    report.share = report.adapted.partition("(")[2].partition(")")[0]
    towers = ("vision", "visual", "audio", "image", "tower", "multi_modal", "speech")
    names = [name for name, weight in trainer.model.named_parameters() if weight.requires_grad]
    report.towers = sum(any(part in name for part in towers) for name in names)
    weights = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    randomize_adapter(trainer.model)
    report.loss, report.gradient = compare_step(bench, trainer, bench.home / "random")
    with torch.no_grad():
        for name, weight in trainer.model.named_parameters():
            weight.copy_(weights[name])
    trainer.run_training()
    report.trained_loss, report.trained_gradient = compare_step(bench, trainer, bench.home / "trained")
    report.adapter = compare_logits(bench, trainer, bench.home / "trained")
    losses = trainer._recorder.losses
    report.learns = losses[-1] < 0.8 * losses[0]


def _check_answers(report: Report, bench: Bench, _steps: int) -> None:
    adapter = bench.home / "trained"
    report.answers = check_answers(bench, adapter if adapter.exists() else bench.home / "none")
