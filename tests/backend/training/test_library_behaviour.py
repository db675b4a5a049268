"""Where the libraries behave unexpectedly and a run must not: compared with plain computations."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest

from arkor.backend.engine.interface import Run
from arkor.backend.training.trl_engine import TrlEngine
from arkor.protocol.datasets import BlobDataset
from arkor.protocol.jobs import JobConfig
from tests.fakes.memory_recorder import MemoryRecorder
from tests.fakes.tiny_model import make_tiny_model

pytestmark = pytest.mark.slow

TEXTS = ["One.", "Two words.", "Three more words.", "And here are five words."]


def train(home: Path, model: Path, **fields: Any) -> MemoryRecorder:
    data = "\n".join(json.dumps({"text": text}) for text in TEXTS).encode()
    digest = hashlib.sha256(data).hexdigest()
    (home / "datasets").mkdir()
    (home / "datasets" / digest).write_bytes(data)
    source = BlobDataset(f"/v1/datasets/{digest}/rows.jsonl")
    (home / "run").mkdir()
    recorder = MemoryRecorder(home / "run")
    config = JobConfig(str(model), source, batch_size=4, warmup_steps=0, **fields)
    TrlEngine("float32").train(Run("job", config, home / "run", home), recorder)
    return recorder


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "bloom"])
def test_the_loss_is_the_mean_over_the_predicted_tokens(tmp_path: Path, architecture: str) -> None:
    """transformers counts the first token of each row, too, for classes without a known loss type like GPT-2."""
    import torch  # noqa: PLC0415 - collecting tests loads no torch
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415 - as above

    folder = make_tiny_model(tmp_path / "model", architecture)
    recorder = train(tmp_path, folder, max_steps=1, learning_rate=1e-12)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    total, count = 0.0, 0
    for text in TEXTS:
        ids = tokenizer(f"{text}{tokenizer.eos_token}", return_tensors="pt").input_ids
        with torch.no_grad():
            scores = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        total -= scores.gather(-1, ids[0, 1:, None]).sum().item()
        count += ids.shape[1] - 1
    assert recorder.losses == [pytest.approx(total / count, rel=1e-4)]


def test_an_evaluation_that_is_not_finite_is_reported(tmp_path: Path) -> None:
    """`evaluate` of transformers leaves such batches out and reports the mean of the others."""
    split = {"train": "train", "eval": "train[:2]"}
    folder = make_tiny_model(tmp_path / "model")
    recorder = train(tmp_path, folder, max_steps=6, learning_rate=1e6, eval_steps=6, dataset_split=split)
    (eval_loss,) = [log["eval_loss"] for log in recorder.logs if "eval_loss" in log]
    assert not math.isfinite(eval_loss)
