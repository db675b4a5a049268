"""Fine-tune a small model to classify support tickets: `arkor start` runs this file."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from arkor import LoraConfig, Trainer, create_arkor

DATA = Path(__file__).parent / "data"
HELD_OUT = [json.loads(row)["messages"] for row in (DATA / "heldout.jsonl").read_text("utf-8").splitlines()]
*TICKET, _ = HELD_OUT[0]
COMPARED = HELD_OUT[:30]
SYSTEM = TICKET[0]["content"]


@dataclass
class Label:
    category: Literal["billing", "cancellation", "delivery", "feedback", "login", "repair"]
    urgency: Literal["normal", "high"]


def on_started(ctx):
    print(f"A ticket to watch, never seen in training: {TICKET[-1]['content']}")


def on_checkpoint(ctx):
    """Print the answer of the half-trained model: JSON, checked against the schema of the class."""
    try:
        answer = ctx.infer(TICKET, temperature=0, max_tokens=24, response_format=Label).parsed
    except Exception as error:  # no answer, or one that does not fit the schema
        answer = error
    print(f"step {ctx.step}: {answer}")


def answers(adapter):
    """Return one model's answers to the held-out tickets, with eight requests at a time."""

    def ask(row):
        return trainer.chat(row[:-1], adapter=adapter, temperature=0, max_tokens=24).text().strip()

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(ask, COMPARED))


def on_completed(ctx):
    """Compare the base and the tuned model on held-out tickets, and count the right answers."""
    models = {"base": answers("base"), "tuned": answers("final")}
    right = dict.fromkeys(models, 0)
    for number, row in enumerate(COMPARED):
        print(f"\n{row[-2]['content']}")
        for name in models:
            answer = models[name][number]
            is_right = answer == row[-1]["content"]
            right[name] += is_right
            print(f"  {name:5}  {'right' if is_right else 'wrong'}  {' '.join(answer.split())}")
    print()
    for name, count in right.items():
        print(f"{name:5}  {count} of {len(COMPARED)} right ({count / len(COMPARED):.0%})")
    print(f'\nAsk it yourself: arkor chat {ctx.job.id} --system "{SYSTEM}"')


trainer = Trainer(
    name="triage",
    model="smollm2-135m-instruct",
    dataset={"type": "file", "path": str(DATA / "train.jsonl")},
    lora=LoraConfig(r=16, alpha=16),
    max_steps=90,
    learning_rate=1e-3,
    batch_size=8,
    dataset_split=0.04,  # a few rows for the evaluation loss, which the chart shows
    callbacks={"on_started": on_started, "on_checkpoint": on_checkpoint, "on_completed": on_completed},
)

arkor = create_arkor(trainer=trainer)
