"""Fine-tune a small model to replace personal data by tags: `arkor start` runs this file."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from arkor import LoraConfig, Trainer, create_arkor

DATA = Path(__file__).parent / "data"
HELD_OUT = [json.loads(row)["messages"] for row in (DATA / "heldout.jsonl").read_text("utf-8").splitlines()]
*SAMPLE, _ = HELD_OUT[0]
COMPARED = HELD_OUT[:30]
SYSTEM = SAMPLE[0]["content"]


@dataclass
class Redaction:
    text: str
    tags: list[str]


def on_started(ctx):
    print(f"A message to watch, never seen in training: {SAMPLE[-1]['content']}")


def on_checkpoint(ctx):
    """Print the answer of the half-trained model: JSON, checked against the schema of the class."""
    try:
        answer = ctx.infer(SAMPLE, temperature=0, max_tokens=80, response_format=Redaction).parsed
    except Exception as error:  # no answer, or one that does not fit the schema
        answer = error
    print(f"step {ctx.step}: {answer}")


def answers(adapter):
    """Return one model's answers to the held-out messages, with eight requests at a time."""

    def ask(row):
        return trainer.chat(row[:-1], adapter=adapter, temperature=0, max_tokens=80).text().strip()

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(ask, COMPARED))


def on_completed(ctx):
    """Compare the base and the tuned model on held-out messages, and count the right answers."""
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
    name="redaction",
    model="smollm2-135m-instruct",
    dataset={"type": "file", "path": str(DATA / "train.jsonl")},
    lora=LoraConfig(r=16, alpha=16),
    max_steps=80,
    learning_rate=1e-3,
    batch_size=8,
    dataset_split=0.04,  # a few rows for the evaluation loss, which the chart shows
    callbacks={"on_started": on_started, "on_checkpoint": on_checkpoint, "on_completed": on_completed},
)

arkor = create_arkor(trainer=trainer)
