"""Speed of the engines that compute answers, and of llama.cpp's own server, in alternating rounds.

    python -m tests.benchmarks.engines [ROUNDS]

Uses the starter model and an adapter of rank 16, over HTTP, with weights of 16 bits in llama.cpp
and the fastest number format of this machine in transformers. Takes about a minute a round on two
cores; prints medians, and the medians of the rounds' ratios.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import requests
from attrs import define

from arkor import LoraConfig, Trainer
from arkor.backend.compute.models import load_configs, load_tokenizer, local_folder
from arkor.backend.runs.paths import models_folder, run_folder
from arkor.settings import STARTER_MODEL
from tests.benchmarks.inference import QUESTION, STREAMS, TOKENS, Served, Table, Timing
from tests.conftest import start_backend

#: About 1,000 tokens.
LONG_QUESTION = "Report {}. " + "The keeper wrote down the weather, the ships and the hours of the lamp. " * 58


@define
class Peer:
    """llama.cpp's own server; prompts are tokens, so that both compute the same."""

    url: str
    tokenizer: Any

    def ask(self, question: str, *, adapter: bool) -> Timing:
        messages = [{"role": "user", "content": question}]
        prompt = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        body = {"prompt": prompt, "n_predict": TOKENS, "temperature": 0, "stream": True, "ignore_eos": True}
        began, first, last = time.perf_counter(), 0.0, 0.0
        count = 0
        lora = [{"id": 0, "scale": 1.0 if adapter else 0.0}]
        with requests.post(f"{self.url}/completion", json={**body, "lora": lora}, stream=True, timeout=300) as answer:
            assert answer.status_code == 200, answer.text
            for line in answer.iter_lines(chunk_size=1):
                if line.startswith(b"data: ") and json.loads(line[6:]).get("tokens"):
                    last = time.perf_counter()
                    first, count = first or last, count + 1
        return Timing(first - began, last - first, count)


@define
class Ours:
    """A backend with a base model and an adapter."""

    served: Served
    job: str

    def ask(self, question: str, *, adapter: bool) -> Timing:
        adapted = {"baseModel": None, "adapter": {"kind": "final", "jobId": self.job}}
        return self.served.ask(question, **(adapted if adapter else {}))


def at_once(ask: Callable[..., Timing], number: int, *, adapter: bool) -> float:
    """Return the tokens per second of concurrent answers, including the prompts."""
    timings: list[Timing] = []

    def one(index: int) -> None:
        timings.append(ask(QUESTION.format(f"{number}-{index}"), adapter=adapter))

    threads = [threading.Thread(target=one, args=(index,)) for index in range(STREAMS)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(timing.tokens for timing in timings) / (time.perf_counter() - began)


def play(table: Table, who: str, ask: Callable[..., Timing], number: int) -> None:
    """Measure everything for one participant."""
    for adapter in (False, True):
        kind = "adapter" if adapter else "base"
        timing = ask(QUESTION.format(number), adapter=adapter)
        table.note(f"{who}: one stream, {kind}", timing.rate)
        table.note(f"{who}: first token, {kind}", 1 / timing.first)
        table.note(f"{who}: {STREAMS} at once, {kind}", at_once(ask, number, adapter=adapter))
    table.note(f"{who}: first token of 1,000, base", 1 / ask(LONG_QUESTION.format(number), adapter=False).first)


@contextmanager
def backend(home: Path, engine: str) -> Iterator[Served]:
    os.environ["ARKOR_SERVING_ENGINE"] = engine
    started = start_backend(home, "--engine", "trl", anew=True)
    try:
        yield Served(started.url, started.token, STARTER_MODEL)
    finally:
        started.process.terminate()
        started.process.wait()


def train(served: Served, folder: Path) -> str:
    """Train one step; return the run's id. The identity for the backend is kept in the folder."""
    folder.mkdir()
    os.environ["ARKOR_HOME"] = str(folder)
    data = folder / "rows.jsonl"
    row = {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good morning."}]}
    data.write_text("\n".join(json.dumps(row) for _ in range(4)))
    os.environ["ARKOR_TOKEN"] = served.token
    trainer = Trainer(
        "speed", STARTER_MODEL, {"type": "file", "path": str(data)}, lora=LoraConfig(16, 16), max_steps=1,
        base_url=served.url, progress=False, project_dir=str(folder),
    )  # fmt: skip
    return trainer.wait().raise_for_status().job.id


@contextmanager
def peer(home: Path, job: str) -> Iterator[Peer]:
    from arkor.backend.compute.gguf.adapter import write_adapter  # noqa: PLC0415 - imports torch
    from arkor.backend.compute.gguf.cache import converted_base  # noqa: PLC0415 - as above

    folder = local_folder(STARTER_MODEL, home, print)
    config, tokenizer = load_configs(folder)[0], load_tokenizer(folder)
    adapter = models_folder(home) / "adapter.gguf"
    write_adapter(run_folder(home, job).final, adapter, config)
    base = converted_base(Path(folder), home, config, tokenizer)
    command = [sys.executable, "-m", "tests.benchmarks.llama_server", str(base), str(adapter)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        yield Peer(next(line.strip() for line in process.stdout if line.startswith("http")), tokenizer)
    finally:
        process.kill()
        process.wait()


def show(table: Table, rounds: int) -> None:
    print(f"{STARTER_MODEL}, {TOKENS} tokens an answer; medians of {rounds} rounds, in answers or tokens a second")
    print(f"{'':34} {'arkor':>9} {'reference':>9} {'llama.cpp':>9}   arkor / reference   arkor / llama.cpp")
    for name in (figure.removeprefix("arkor: ") for figure in table.figures if figure.startswith("arkor: ")):
        figures = [table.median(f"{who}: {name}") for who in ("arkor", "reference", "peer")]
        ratios = [table.ratio(f"arkor: {name}", f"{who}: {name}") for who in ("reference", "peer")]
        print(f"{name:34} {figures[0]:9.2f} {figures[1]:9.2f} {figures[2]:9.2f} {ratios[0]:14.2f} {ratios[1]:19.2f}")


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        home, table = Path(folder) / "home", Table()
        fast = stack.enter_context(backend(home, "auto"))
        job = train(fast, Path(folder) / "fast")
        other = Path(folder) / "other"
        reference = stack.enter_context(backend(other, "transformers"))
        same = train(reference, Path(folder) / "reference")
        llama = stack.enter_context(peer(home, job))
        asks = {"reference": Ours(reference, same).ask, "arkor": Ours(fast, job).ask, "peer": llama.ask}
        for ask in asks.values():  # converts and loads what is needed
            ask("Hello", adapter=False)
            ask("Hello", adapter=True)
            ask(LONG_QUESTION, adapter=False)
        for number in range(rounds):
            for who, ask in asks.items():
                play(table, who, ask, number)
        show(table, rounds)


if __name__ == "__main__":
    main()
