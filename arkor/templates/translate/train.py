"""Fine-tune a small model to translate short sentences from three languages: `arkor start` runs this file."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from arkor import LoraConfig, Trainer, create_arkor

DATA = Path(__file__).parent / "data"
HELD_OUT = [json.loads(row)["messages"] for row in (DATA / "heldout.jsonl").read_text("utf-8").splitlines()]
*SAMPLE, _ = HELD_OUT[0]
COMPARED = HELD_OUT[:30]
SYSTEM = SAMPLE[0]["content"]


@dataclass
class Translation:
    language: Literal["French", "German", "Spanish"]
    translation: str


def on_started(ctx):
    print(f"A sentence to watch, never seen in training: {SAMPLE[-1]['content']}")


def on_checkpoint(ctx):
    """Print the answer of the half-trained model: JSON, checked against the schema of the class."""
    try:
        answer = ctx.infer(SAMPLE, temperature=0, max_tokens=48, response_format=Translation).parsed
    except Exception as error:  # no answer, or one that does not fit the schema
        answer = error
    print(f"step {ctx.step}: {answer}")


def translation_in(answer):
    """Return the translation in an answer; all of the answer if it is not the expected JSON."""
    try:
        return str(json.loads(answer)["translation"])
    except (ValueError, TypeError, KeyError):
        return answer


def overlap(answer, expected):
    """Return the word overlap from 0 to 1: twice the shared words over the words of both texts."""
    ours, theirs = (set(re.findall(r"\w+", text.lower())) for text in (answer, expected))
    return 2 * len(ours & theirs) / max(1, len(ours) + len(theirs))


def answers(adapter):
    """Return one model's answers to the held-out sentences, with eight requests at a time."""

    def ask(row):
        return trainer.chat(row[:-1], adapter=adapter, temperature=0, max_tokens=48).text().strip()

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(ask, COMPARED))


def on_completed(ctx):
    """Compare the base and the tuned model on held-out sentences, by word overlap."""
    models = {"base": answers("base"), "tuned": answers("final")}
    scores = dict.fromkeys(models, 0.0)
    for number, row in enumerate(COMPARED):
        expected = translation_in(row[-1]["content"])
        print(f"\n{row[-2]['content']}  ({expected})")
        for name in models:
            answer = translation_in(models[name][number])
            scores[name] += overlap(answer, expected)
            print(f"  {name:5}  {' '.join(answer.split())}")
    print()
    for name, score in scores.items():
        print(f"{name:5}  {score / len(COMPARED):.0%} of the words right")
    print(f'\nAsk it yourself: arkor chat {ctx.job.id} --system "{SYSTEM}"')


trainer = Trainer(
    name="translate",
    model="smollm2-135m-instruct",
    dataset={"type": "file", "path": str(DATA / "train.jsonl")},
    lora=LoraConfig(r=16, alpha=16),
    max_steps=60,
    learning_rate=1e-3,
    batch_size=8,
    dataset_split=0.04,  # a few rows for the evaluation loss, which the chart shows
    callbacks={"on_started": on_started, "on_checkpoint": on_checkpoint, "on_completed": on_completed},
)

arkor = create_arkor(trainer=trainer)
