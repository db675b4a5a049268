"""lm-eval: a deployment by text completions and by chat completions, and the adapter folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from calls import BASE_URL, MODEL, call

LIMIT = 8
TASKS = Path("tasks")


def prepare() -> None:
    """Copy the tasks, and put the held-out rows where their documentation has them."""
    shutil.rmtree(TASKS, ignore_errors=True)
    TASKS.mkdir()
    for file in Path(__file__).parent.glob("triage_*.yaml"):
        settings = f'\ndataset_kwargs: {{"data_files": {{"test": "{os.environ["HELD_OUT"]}"}}}}\n'
        (TASKS / file.name).write_text(file.read_text() + settings)


def evaluate(model: str, arguments: str, task: str) -> str:
    """Run the command, and return the result of the task, which must be mostly right."""
    out = Path("results")
    shutil.rmtree(out, ignore_errors=True)
    lm_eval = [sys.executable, "-m", "lm_eval", "run", "--model", model, "--model_args", arguments]
    options = ["--tasks", task, "--include_path", str(TASKS), "--apply_chat_template"]
    command = [*lm_eval, *options, "--limit", str(LIMIT), "--batch_size", "1", "--output_path", str(out)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout[-600:]
    [file] = out.rglob("results_*.json")
    results = json.loads(file.read_text())["results"][task]
    score = results.get("acc,none", results.get("exact_match,none"))
    assert score >= 0.5, results
    return f"{score}"


prepare()
TOKENIZER = os.environ["BASE_MODEL"]
COMPLETIONS = f"model={MODEL},base_url={BASE_URL}/completions,tokenizer={TOKENIZER},max_length=2048"
CHAT = f"model={MODEL},base_url={BASE_URL}/chat/completions"
FOLDER = f"pretrained={TOKENIZER},peft={os.environ['ADAPTER']},dtype=float32"


@call("local-completions: log-likelihood")
def _() -> str:
    return evaluate("local-completions", COMPLETIONS, "triage_choices")


@call("local-completions: log-likelihood, texts")
def _() -> str:
    return evaluate("local-completions", f"{COMPLETIONS},tokenized_requests=False", "triage_choices")


@call("local-completions: generate_until")
def _() -> str:
    return evaluate("local-completions", COMPLETIONS, "triage_generate")


@call("local-chat-completions: generate_until")
def _() -> str:
    return evaluate("local-chat-completions", CHAT, "triage_generate")


@call("hf with the adapter folder: log-likelihood")
def _() -> str:
    return evaluate("hf", f"{FOLDER}", "triage_choices")


@call("hf with the adapter folder: generate_until")
def _() -> str:
    return evaluate("hf", FOLDER, "triage_generate")
