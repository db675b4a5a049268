"""Fine-tune the starter model to classify the intent of a bank customer's message, with the public
API only.

    python tests/benchmarks/banking77.py [DATA] [--rows N] [--steps N]

Prints the exact-match accuracy on held-out rows before and after training, and the duration of the
training.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from arkor import Adapter, CloudApiClient, LoraConfig, Trainer, connect
from arkor.protocol.chat import InferenceRequest
from arkor.settings import STARTER_MODEL
from tests.benchmarks import intents

#: Concurrent requests.
SIDE_BY_SIDE = 8


def accuracy(client: CloudApiClient, rows: list[tuple[str, str]], **who: Any) -> float:
    """Return the share of rows whose answer equals the intent."""

    def right(row: tuple[str, str]) -> bool:
        request = InferenceRequest(intents.question(row[0]), temperature=0.0, max_tokens=16, stream=False, **who)
        return client.chat(request).text().strip() == row[1]

    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        return sum(pool.map(right, rows)) / len(rows)


class Watch:
    """Measures the seconds from the first step to the end, in callbacks."""

    def __init__(self) -> None:
        self.began = 0.0
        self.seconds = 0.0

    def on_started(self, _context: Any) -> None:
        self.began = time.perf_counter()

    def on_completed(self, _context: Any) -> None:
        self.seconds = time.perf_counter() - self.began


def fine_tune(data: Path, steps: int, *, progress: bool = True) -> tuple[str, float, float]:
    """Train; return the run's id, the seconds of its steps, and its total seconds."""
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "intents.jsonl")
        file.write_text("\n".join(json.dumps(row) for row in intents.training_rows(data)), encoding="utf-8")
        trainer = Trainer(
            name="banking77",
            model=STARTER_MODEL,
            dataset={"type": "file", "path": str(file)},
            lora=LoraConfig(r=intents.RANK, alpha=intents.ALPHA),
            max_steps=steps,
            batch_size=intents.BATCH_SIZE,
            learning_rate=intents.LEARNING_RATE,
            lr_scheduler_type="linear",
            warmup_steps=0,
            save_steps=steps,
            callbacks=watch,
            progress="auto" if progress else False,
            project_dir=folder,
        )
        began = time.perf_counter()
        result = trainer.wait().raise_for_status()
        return result.job.id, watch.seconds, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, default=intents.DATA, help="the folder of banking77")
    parser.add_argument("--rows", type=int, default=200, help="held-out rows to answer (200; there are 400)")
    parser.add_argument("--steps", type=int, default=intents.STEPS)
    options = parser.parse_args()
    rows = intents.test_rows(options.data, options.rows)
    with tempfile.TemporaryDirectory() as project:
        client = connect(project_dir=project)
        before = accuracy(client, rows, base_model=STARTER_MODEL)
        print(f"before: {before:.1%} of {len(rows)} held-out messages", flush=True)
        job, training, whole = fine_tune(options.data, options.steps)
        after = accuracy(client, rows, adapter=Adapter("final", job))
    print(f"after:  {after:.1%} of {len(rows)} held-out messages")
    print(f"{options.steps} steps in {training:.1f} s; the whole run, loading and all, {whole:.1f} s")


if __name__ == "__main__":
    main()
