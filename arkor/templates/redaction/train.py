"""Teach a small model to replace personal data by tags: `arkor start` runs this file."""

import json
from pathlib import Path

from arkor import LoraConfig, Trainer, create_arkor

DATA = Path(__file__).parent / "data"
HELD_OUT = [json.loads(row)["messages"] for row in (DATA / "heldout.jsonl").read_text("utf-8").splitlines()]
*SAMPLE, _ = HELD_OUT[0]
SYSTEM = SAMPLE[0]["content"]


def on_started(ctx):
    print(f"A message to watch, never seen in training: {SAMPLE[-1]['content']}")


def on_checkpoint(ctx):
    """What does the half-trained model make of it?"""
    try:
        answer = ctx.infer(SAMPLE, temperature=0, max_tokens=64).text()
    except Exception as error:
        answer = f"no answer ({error})"
    print(f"step {ctx.step}: {answer}")


def on_completed(ctx):
    """Base and tuned model side by side on messages that were held out, and how often each is right."""
    right = {"base": 0, "tuned": 0}
    compared = HELD_OUT[:30]
    for *message, expected in compared:
        print(f"\n{message[-1]['content']}")
        for name, adapter in (("base", "base"), ("tuned", "final")):
            answer = trainer.chat(message, adapter=adapter, temperature=0, max_tokens=64).text().strip()
            is_right = answer == expected["content"]
            right[name] += is_right
            print(f"  {name:5}  {'right' if is_right else 'wrong'}  {' '.join(answer.split())}")
    print()
    for name, count in right.items():
        print(f"{name:5}  {count} of {len(compared)} right ({count / len(compared):.0%})")
    print(f'\nAsk it yourself: arkor chat {ctx.job.id} --system "{SYSTEM}"')


trainer = Trainer(
    name="redaction",
    model="smollm2-135m-instruct",
    dataset={"type": "file", "path": str(DATA / "train.jsonl")},
    lora=LoraConfig(r=16, alpha=16),
    max_steps=80,
    learning_rate=1e-3,
    batch_size=8,
    callbacks={"on_started": on_started, "on_checkpoint": on_checkpoint, "on_completed": on_completed},
)

arkor = create_arkor(trainer=trainer)
