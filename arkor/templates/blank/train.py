"""Fine-tune a small model on your own rows: `arkor start` runs this file."""

from pathlib import Path

from arkor import LoraConfig, Trainer, create_arkor

DATA = Path(__file__).parent / "data"
QUESTION = "Where is my parcel?"


def on_checkpoint(ctx):
    """Print the answer of the half-trained model."""
    try:
        answer = ctx.infer(QUESTION, temperature=0, max_tokens=64).text()
    except Exception as error:
        answer = f"no answer ({error})"
    print(f"step {ctx.step}: {answer}")


def on_completed(ctx):
    print(f"Ask it yourself: arkor chat {ctx.job.id}")


trainer = Trainer(
    name="blank",
    model="smollm2-135m-instruct",
    dataset={"type": "file", "path": str(DATA / "train.jsonl")},
    lora=LoraConfig(r=16, alpha=16),
    max_steps=30,
    learning_rate=1e-3,
    batch_size=8,
    callbacks={"on_checkpoint": on_checkpoint, "on_completed": on_completed},
)

arkor = create_arkor(trainer=trainer)
