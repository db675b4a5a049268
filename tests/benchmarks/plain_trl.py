"""The run of `banking77.py` in plain TRL, without arkor. Prints one JSON line.

    python tests/benchmarks/plain_trl.py MODEL_FOLDER [DATA] [--rows N] [--steps N]

`MODEL_FOLDER` is the converted starter model, `ARKOR_HOME/models/smollm2-135m-instruct`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from arkor.backend.training.trl_engine import recompute_argument
from tests.benchmarks import intents


def build(model: Any, tokenizer: Any, data: Path, steps: int, folder: str) -> Any:
    """Return TRL's trainer with the settings of the benchmark, and TRL's defaults adapted to a CPU."""
    rows = [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in intents.training_rows(data)]
    arguments = SFTConfig(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=intents.BATCH_SIZE,
        learning_rate=intents.LEARNING_RATE,
        lr_scheduler_type="linear",
        **{recompute_argument(SFTConfig): False},
        bf16=False,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    lora = LoraConfig(
        r=intents.RANK, lora_alpha=intents.ALPHA, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=0.0
    )
    return SFTTrainer(
        model=model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, peft_config=lora
    )


def accuracy(model: Any, tokenizer: Any, rows: list[tuple[str, str]]) -> float:
    """Return the share of rows whose greedy answer equals the intent."""
    model.eval()
    right = 0
    for text, intent in rows:
        prompt = tokenizer.apply_chat_template(intents.question(text), tokenize=False, add_generation_prompt=True)
        inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).to(model.device)
        tokens = model.generate(**inputs, max_new_tokens=16, do_sample=False)
        answer = tokenizer.decode(tokens[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)
        right += answer.strip() == intent
    return right / len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="the folder of the converted starter model")
    parser.add_argument("data", nargs="?", type=Path, default=intents.DATA, help="the folder of banking77")
    parser.add_argument("--rows", type=int, default=0, help="held-out rows to answer afterwards (none)")
    parser.add_argument("--steps", type=int, default=intents.STEPS)
    options = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    with tempfile.TemporaryDirectory() as folder:
        trainer = build(model, tokenizer, options.data, options.steps, folder)
        began = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - began
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    found: dict[str, Any] = {"seconds": seconds, "loss": sum(losses[-10:]) / len(losses[-10:])}
    if options.rows:
        found["accuracy"] = accuracy(trainer.model, tokenizer, intents.test_rows(options.data, options.rows))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
