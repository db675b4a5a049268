"""Child process: answers what comes in on stdin, a JSON object a line.

    python -m arkor.backend.inference.process --home DIR --engine trl|scripted

In:  `{"completion": {…}}`, `{"cancel": id}`.    Out: `{"id", "delta" | "call" | "done" | "error": {…}}`.

It leaves when stdin ends, whatever it is doing: then the server is gone. What libraries print goes to stderr. A run
in progress is never its victim: it is nicer than one, and the first to go when the machine has no memory left.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, BinaryIO

from arkor.backend.compute.process_tuning import claim_stdout, limit_onednn_cache, lower_priority
from arkor.backend.inference.messages import Generator, Reply, completion_from_json, reply_to_json
from arkor.backend.inference.scripted_generator import ScriptedGenerator
from arkor.protocol.codec import dumps
from arkor.settings import serving_memory_bytes


def load_generator(engine: str, home: Path) -> Generator:
    """`"trl"`, or `"scripted"`; torch and its kin are imported with the former alone."""
    if engine == "scripted":
        return ScriptedGenerator()
    limit_onednn_cache()
    generator: Generator = importlib.import_module("arkor.backend.inference.generator").TorchGenerator(
        home, serving_memory_bytes()
    )
    return generator


class RequestQueue:
    """Takes in what is asked, and lets the generator work while there is something to do."""

    def __init__(self, generator: Generator, send: Callable[[Reply], None]) -> None:
        self._generator = generator
        self._send = send
        self._inbox: SimpleQueue[dict[str, Any]] = SimpleQueue()

    def put(self, request: dict[str, Any]) -> None:
        """Hand in a line; from any thread."""
        self._inbox.put(request)

    def step(self) -> None:
        """Take in everything that was asked, waiting for it if there is no work; then a token for everybody."""
        while request := self._next():
            if "completion" in request:
                self._generator.submit(completion_from_json(request["completion"]))
            else:
                self._generator.cancel(request["cancel"])
        for reply in self._generator.step():
            self._send(reply)

    def _next(self) -> dict[str, Any] | None:
        try:
            return self._inbox.get(block=not self._generator.busy)
        except Empty:
            return None


def read_lines(stream: BinaryIO, requests: RequestQueue) -> None:
    """Hand every line to the desk; the end of the stream is the end of the process."""
    for line in stream:
        requests.put(json.loads(line))
    os._exit(0)


def main() -> None:
    """Read the command line and serve until stdin ends."""
    parser = argparse.ArgumentParser(
        prog="python -m arkor.backend.inference.process", description="Answer on stdin and stdout."
    )
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--engine", choices=["trl", "scripted"], required=True)
    options = parser.parse_args()
    lower_priority()
    out = claim_stdout()

    def send(reply: Reply) -> None:
        out.write(dumps(reply_to_json(reply)).encode() + b"\n")

    requests = RequestQueue(load_generator(options.engine, options.home), send)
    threading.Thread(target=read_lines, args=(sys.stdin.buffer, requests), daemon=True).start()
    while True:
        requests.step()


if __name__ == "__main__":
    main()
