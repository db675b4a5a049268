"""Another process that takes part in a benchmark, and says a line of JSON now and then."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from attrs import frozen


@frozen
class Child:
    """A running `python -m MODULE`."""

    process: subprocess.Popen[str]

    def read(self) -> Any:
        """The next line that it prints."""
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())


@contextmanager
def child(module: str, *arguments: str) -> Iterator[Child]:
    """Run it; it is to leave when its standard input ends, and is killed if it does not."""
    command = [sys.executable, "-m", module, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        try:
            yield Child(process)
        finally:
            process.stdin.close()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
