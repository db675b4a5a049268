"""Speed of the engines that compute answers, and of llama.cpp's own server, in alternating rounds.

    python -m tests.benchmarks.engines [ROUNDS]

Uses the starter model and an adapter of rank 16, with weights of 16 bits in llama.cpp and the
fastest number format of this machine in transformers. arkor's engines are asked through the pipe of
their process, llama.cpp's server over HTTP. Takes about a minute a round on two cores; prints
medians, and the medians of the rounds' ratios.
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
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from uuid import uuid4

import requests
from attrs import asdict, define

from arkor.backend.compute.child_process import encode_line
from arkor.backend.compute.models import load_configs, load_model, load_tokenizer, local_folder
from arkor.backend.inference.messages import CompletionRequest, Delta, Done, Reply, reply_from_json
from arkor.backend.runs.paths import models_folder
from arkor.settings import STARTER_MODEL
from tests.benchmarks.inference import QUESTION, STREAMS, TOKENS, Table, Timing, concurrent_rate

PIPES: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}

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


class Ours:
    """A serving process with a base model and an adapter."""

    def __init__(self, process: subprocess.Popen[bytes], adapter: Path) -> None:
        self._process = process
        self._adapter = str(adapter)
        self._replies: dict[str, SimpleQueue[Reply]] = {}
        threading.Thread(target=self._read, daemon=True).start()

    def ask(self, question: str, *, adapter: bool) -> Timing:
        name = uuid4().hex
        replies = self._replies[name] = SimpleQueue()
        messages = ({"role": "user", "content": question},)
        asked = CompletionRequest(name, STARTER_MODEL, self._adapter if adapter else None, messages, max_tokens=TOKENS)
        began, first, last = time.perf_counter(), 0.0, 0.0
        assert self._process.stdin is not None
        self._process.stdin.write(encode_line({"completion": asdict(asked)}))
        self._process.stdin.flush()
        while isinstance(reply := replies.get(), Delta):
            last = time.perf_counter()
            first = first or last
        assert isinstance(reply, Done), reply
        return Timing(first - began, last - first, reply.completion_tokens)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            reply = reply_from_json(json.loads(line))
            self._replies[reply.id].put(reply)


def at_once(ask: Callable[..., Timing], number: int, *, adapter: bool) -> float:
    """Return the tokens per second of concurrent answers, including the prompts."""
    questions = [QUESTION.format(f"{number}-{index}") for index in range(STREAMS)]
    return concurrent_rate([partial(ask, question, adapter=adapter) for question in questions])


def play(table: Table, who: str, ask: Callable[..., Timing], number: int) -> None:
    """Measure everything for one participant."""
    for adapter in (False, True):
        kind = "adapter" if adapter else "base"
        timing = ask(QUESTION.format(number), adapter=adapter)
        table.note(f"{who}: one stream, {kind}", timing.rate)
        table.note(f"{who}: first token, {kind}", 1 / timing.first)
        table.note(f"{who}: {STREAMS} at once, {kind}", at_once(ask, number, adapter=adapter))
    table.note(f"{who}: first token of 1,000, base", 1 / ask(LONG_QUESTION.format(number), adapter=False).first)
    found = {name: round(values[-1], 2) for name, values in table.figures.items() if name.startswith(f"{who}:")}
    print(found, flush=True)


@contextmanager
def serving(home: Path, adapter: Path, engine: str) -> Iterator[Ours]:
    command = [sys.executable, "-m", "arkor.backend.inference.process", "--home", str(home), "--engine", "trl"]
    environment = {**os.environ, "ARKOR_SERVING_ENGINE": engine}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, **PIPES) as process:
        yield Ours(process, adapter)
        process.kill()


def make_adapter(model: str, folder: Path) -> Path:
    """Save an adapter of rank 16 on all linear layers, which changes nothing."""
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415 - imports torch

    get_peft_model(load_model(model), LoraConfig(r=16, target_modules="all-linear")).save_pretrained(folder)
    return folder


@contextmanager
def peer(home: Path, lora: Path) -> Iterator[Peer]:
    from arkor.backend.compute.gguf.adapter import write_adapter  # noqa: PLC0415 - imports torch
    from arkor.backend.compute.gguf.cache import converted_base  # noqa: PLC0415 - as above

    folder = local_folder(STARTER_MODEL, home, print)
    config, tokenizer = load_configs(folder)[0], load_tokenizer(folder)
    adapter = models_folder(home) / "adapter.gguf"
    write_adapter(lora, adapter, config)
    base = converted_base(Path(folder), home, config, tokenizer)
    command = [sys.executable, "-m", "tests.benchmarks.llama_server", str(base), str(adapter)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, text=True, **PIPES)
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
        home, table = Path(folder), Table()
        adapter = make_adapter(local_folder(STARTER_MODEL, home, print), home / "adapter")
        llama = stack.enter_context(peer(home, adapter))
        asks = {
            "reference": stack.enter_context(serving(home, adapter, "transformers")).ask,
            "arkor": stack.enter_context(serving(home, adapter, "auto")).ask,
            "peer": llama.ask,
        }
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
