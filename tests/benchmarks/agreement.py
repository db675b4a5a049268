"""How many greedy answers of llama.cpp equal the ones by `generate` of transformers in fp32.

    python -m tests.benchmarks.agreement [--adapter FOLDER] [--rows N] [--tokens N]

Asks the starter model, or an adapter of it, held-out messages of banking77, with weights of 16
bits in llama.cpp.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

from arkor.backend.compute.models import load_model, load_tokenizer, local_folder
from arkor.backend.inference.generator import ModelGenerator
from arkor.backend.inference.messages import CompletionRequest, Delta, Done
from arkor.settings import STARTER_MODEL
from tests.benchmarks import intents


def expected(folder: str, adapter: str | None, prompts: list[Any], tokens: int) -> list[str]:
    import torch  # noqa: PLC0415 - slow to import
    from peft import PeftModel  # noqa: PLC0415 - as above

    tokenizer = load_tokenizer(folder)
    model = load_model(folder, dtype=torch.float32).eval()
    model = PeftModel.from_pretrained(model, adapter).merge_and_unload() if adapter else model
    answers = []
    for prompt in prompts:
        text = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")
        out = model.generate(**ids, max_new_tokens=tokens, do_sample=False)
        answers.append(tokenizer.decode(out[0, ids.input_ids.shape[1] :], skip_special_tokens=True))
    return answers


def answered(home: Path, adapter: str | None, prompts: list[Any], tokens: int) -> list[str]:
    os.environ["ARKOR_SERVING_ENGINE"] = "llama.cpp"
    generator = ModelGenerator(home)
    texts = dict.fromkeys(map(str, range(len(prompts))), "")
    for number, prompt in enumerate(prompts):
        generator.submit(CompletionRequest(str(number), STARTER_MODEL, adapter, tuple(prompt), max_tokens=tokens))
    while generator.busy:
        for reply in generator.step():
            if isinstance(reply, Delta):
                texts[reply.id] += reply.text
            else:
                assert isinstance(reply, Done), reply
                assert reply.engine == "llama.cpp"
    return list(texts.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, default=intents.DATA, help="the folder of banking77")
    parser.add_argument("--adapter")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=16)
    options = parser.parse_args()
    prompts = [intents.question(text) for text, _ in intents.test_rows(options.data, options.rows)]
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        model = local_folder(STARTER_MODEL, home, print)
        ours = answered(home, options.adapter, prompts, options.tokens)
        theirs = expected(model, options.adapter, prompts, options.tokens)
    equal = sum(one == other for one, other in zip(ours, theirs, strict=True))
    print(f"{equal} of {len(prompts)} answers are equal, of up to {options.tokens} tokens")


if __name__ == "__main__":
    main()
