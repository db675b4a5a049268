"""Teach a small model to replace personal data by tags: `arkor start` runs this file."""

import json
from pathlib import Path

from arkor import LoraConfig, Trainer, create_arkor

DATA = Path(__file__).parent / "data"
HELD_OUT = [json.loads(row)["messages"] for row in (DATA / "heldout.jsonl").read_text("utf-8").splitlines()]
*SAMPLE, _ = HELD_OUT[0]


def on_checkpoint(ctx):
    """What does the half-trained model make of one message that it never sees in training?"""
    try:
        answer = ctx.infer(SAMPLE, temperature=0, max_tokens=64).text()
    except Exception as error:
        answer = f"no answer ({error})"
    print(f"step {ctx.step}: {SAMPLE[-1]['content']!r} → {answer}")


def on_completed(ctx):
    """Base and tuned model side by side on every held-out message, and how often each is right to the letter."""
    right = {"base": 0, "final": 0}
    for *message, expected in HELD_OUT:
        print(f"\n{message[-1]['content']}")
        for adapter in right:
            answer = trainer.chat(message, adapter=adapter, temperature=0, max_tokens=64).text().strip()
            is_right = answer == expected["content"]
            right[adapter] += is_right
            print(f"  {adapter:5}  {'right' if is_right else 'wrong'}  {' '.join(answer.split())}")
    print()
    for adapter, count in right.items():
        print(f"{adapter:5}  {count} of {len(HELD_OUT)} right ({count / len(HELD_OUT):.0%})")


trainer = Trainer(
    name="redaction",
    model="smollm2-135m-instruct",
    dataset={"type": "file", "path": str(DATA / "train.jsonl")},
    lora=LoraConfig(r=16, alpha=16),
    max_steps=100,
    learning_rate=1e-3,
    batch_size=8,
    callbacks={"on_checkpoint": on_checkpoint, "on_completed": on_completed},
)

arkor = create_arkor(trainer=trainer)
