"""Child process that generates answers.

    python -m arkor.backend.inference.process --home DIR --engine trl|scripted

It reads JSON objects from stdin, one a line: `{"completion": {…}}` or `{"cancel": id}`. It writes
`{"id", "delta" | "call" | "done" | "error": {…}}` to stdout, and everything else to stderr.

It exits when stdin ends. Runs have precedence over it for CPU time and memory.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from arkor.backend.compute.child_process import ParentConnection, parse_options
from arkor.backend.compute.process_tuning import limit_onednn_cache, lower_priority
from arkor.backend.inference.messages import Generator, Reply, completion_from_json, reply_to_json
from arkor.backend.inference.scripted_generator import ScriptedGenerator
from arkor.settings import serving_memory_bytes


def load_generator(engine: str, home: Path) -> Generator:
    """Return the generator of an engine; only "trl" imports torch."""
    if engine == "scripted":
        return ScriptedGenerator()
    limit_onednn_cache()
    module = importlib.import_module("arkor.backend.inference.generator")
    generator: Generator = module.ModelGenerator(home, serving_memory_bytes() or None)
    return generator


class RequestQueue:
    """Passes requests from other threads to the generator, and runs it while it is busy."""

    def __init__(self, generator: Generator, send: Callable[[Reply], None]) -> None:
        self._generator = generator
        self._send = send
        self._requests: SimpleQueue[dict[str, Any]] = SimpleQueue()

    def put(self, request: dict[str, Any]) -> None:
        """Add a request. Thread-safe."""
        self._requests.put(request)

    def step(self) -> None:
        """Submit all queued requests, waiting for one if idle; then run one step."""
        while request := self._next():
            if "completion" in request:
                self._generator.submit(completion_from_json(request["completion"]))
            else:
                self._generator.cancel(request["cancel"])
        for reply in self._generator.step():
            self._send(reply)

    def _next(self) -> dict[str, Any] | None:
        try:
            return self._requests.get(block=not self._generator.busy)
        except Empty:
            return None


def main() -> None:
    """Generate answers until stdin ends."""
    options = parse_options("arkor.backend.inference.process", "Generate answers for the server.")
    lower_priority()
    parent = ParentConnection()
    generator = load_generator(options.engine, options.home)
    requests = RequestQueue(generator, lambda reply: parent.send(reply_to_json(reply)))
    parent.listen(requests.put)
    while True:
        requests.step()


if __name__ == "__main__":
    main()
