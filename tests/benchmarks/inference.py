"""Speed of answers compared with `generate` of transformers, in alternating rounds.

    python -m tests.benchmarks.inference [ROUNDS]

Uses the starter model in the fastest number format of this machine, over HTTP: one answer, eight
concurrent answers, and answers with a schema. Takes about two minutes on two cores; prints the
medians of the rounds.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import requests
from attrs import define, field

from arkor.settings import STARTER_MODEL
from tests.conftest import start_backend

TOKENS = 64
STREAMS = 8
QUESTION = "Tell me a long story about a lighthouse keeper and number {}."
LOOSE = {"type": "object", "properties": {"story": {"type": "string", "minLength": 2000}}, "required": ["story"]}
CONSTRAINTS: dict[str, dict[str, Any]] = {
    "schema": {"responseFormat": {"type": "json_schema", "json_schema": {"name": "story", "schema": LOOSE}}},
    "regex": {"structuredOutputs": {"regex": r"[\s\S]{2000,}"}},
}


@define
class Timing:
    """One answer: seconds to the first token, seconds from there to the last, number of tokens."""

    first: float
    rest: float
    tokens: int

    @property
    def rate(self) -> float:
        return (self.tokens - 1) / self.rest


class Bare:
    """transformers only."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415 - after the backend has started

        from arkor.backend.compute.device import choose_device  # noqa: PLC0415 - imports torch, too

        device = choose_device()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=device.dtype).to(device.kind).eval()
        self.words = device.description

    def ask(self, question: str) -> Timing:
        messages = [{"role": "user", "content": question}]
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        inputs = self.tokenizer(text, add_special_tokens=False, return_tensors="pt").to(self.model.device)
        stamps: list[float] = []

        class Stamps:
            def put(self, _tokens: Any) -> None:
                stamps.append(time.perf_counter())

            def end(self) -> None:
                pass

        began = time.perf_counter()
        self.model.generate(**inputs, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, streamer=Stamps())
        first, last = stamps[1], stamps[-1]  # the streamer gets the prompt first
        return Timing(first - began, last - first, len(stamps) - 1)


@define
class Served:
    """A backend of arkor."""

    url: str
    token: str
    model: str

    def ask(self, question: str, **more: Any) -> Timing:
        body = {
            "messages": [{"role": "user", "content": question}],
            "baseModel": self.model,
            "maxTokens": TOKENS,
            **more,
        }
        began = time.perf_counter()
        first = last = 0.0
        with requests.post(
            f"{self.url}/v1/inference/chat",
            params={"orgSlug": "local", "projectSlug": "default"},
            headers={"Authorization": f"Bearer {self.token}"},
            json=body,
            stream=True,
            timeout=300,
        ) as answer:
            assert answer.status_code == 200, answer.text
            usage: dict[str, int] = {}
            for line in answer.iter_lines(chunk_size=1):
                if b'"content":' in line and b'"content":""' not in line:
                    last = time.perf_counter()
                    first = first or last
                if b'"usage"' in line:
                    usage = json.loads(line.removeprefix(b"data: "))["usage"]
        return Timing(first - began, last - first, usage["completion_tokens"])

    def ask_at_once(self, count: int, **more: Any) -> float:
        """Return the tokens per second of concurrent answers, including the prompts."""
        return concurrent_rate([partial(self.ask, QUESTION.format(number), **more) for number in range(count)])


def concurrent_rate(asks: Sequence[Callable[[], Timing]]) -> float:
    """Request answers at the same time, each in a thread; return their tokens per second."""
    began = time.perf_counter()
    with ThreadPoolExecutor(len(asks)) as pool:
        timings = list(pool.map(lambda ask: ask(), asks))
    return sum(timing.tokens for timing in timings) / (time.perf_counter() - began)


@define
class Table:
    """The results of the rounds, by name."""

    figures: dict[str, list[float]] = field(factory=dict)

    def note(self, name: str, value: float) -> None:
        self.figures.setdefault(name, []).append(value)

    def median(self, name: str) -> float:
        return statistics.median(self.figures[name])

    def ratio(self, one: str, other: str) -> float:
        """Return the median of the rounds' ratios, so that other load affects both sides alike."""
        return statistics.median(a / b for a, b in zip(self.figures[one], self.figures[other], strict=True))


def play(table: Table, bare: Bare, served: Served, number: int) -> None:
    """Run one round."""
    question = QUESTION.format(number)
    plain, ours = bare.ask(question), served.ask(question)
    for who, timing in (("bare", plain), ("ours", ours)):
        table.note(f"{who} first", timing.first)
        table.note(f"{who} rate", timing.rate)
    began = time.perf_counter()
    alone = [served.ask(QUESTION.format(one)) for one in range(2)]
    table.note("in turn", sum(timing.tokens for timing in alone) / (time.perf_counter() - began))
    table.note("at once", served.ask_at_once(STREAMS))
    table.note("at once, schema", served.ask_at_once(STREAMS, **CONSTRAINTS["schema"]))
    for name, constraint in CONSTRAINTS.items():
        table.note(f"free beside {name}", served.ask(question).rate)
        table.note(name, served.ask(question, **constraint).rate)


def tell(table: Table, words: str) -> None:
    """Return the table."""
    print(f"{STARTER_MODEL} on {words}; {TOKENS} tokens an answer; medians of {len(table.figures['bare rate'])} rounds")
    for what, unit, ours, bare in (
        ("time to first token", "s", "ours first", "bare first"),
        ("one stream", "tokens/s", "ours rate", "bare rate"),
        (f"{STREAMS} at once, one in turn", "tokens/s", "at once", "in turn"),
        ("held to a schema, free", "tokens/s", "schema", "free beside schema"),
        ("held to a regex, free", "tokens/s", "regex", "free beside regex"),
        (f"{STREAMS} at once held to a schema, free", "tokens/s", "at once, schema", "at once"),
    ):
        figures = f"{table.median(ours):8.3f} {table.median(bare):8.3f} {unit:9}"
        print(f"{what:36} {figures} ratio {table.ratio(ours, bare):.2f}")


def main() -> None:
    """Start a backend, run the rounds, print the table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        backend = start_backend(home, "--engine", "trl", anew=True)
        try:
            served = Served(backend.url, backend.token, STARTER_MODEL)
            for constraint in ({}, *CONSTRAINTS.values()):
                served.ask("Hello", **constraint)  # converts and loads the model, compiles the constraints
            bare = Bare(home / "models" / STARTER_MODEL)
            bare.ask("Hello")
            table = Table()
            for number in range(rounds):
                play(table, bare, served, number)
            tell(table, bare.words)
        finally:
            backend.process.terminate()
            backend.process.wait()


if __name__ == "__main__":
    main()
