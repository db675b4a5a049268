"""Processes of a benchmark that print lines of JSON."""

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
        """Wait for its next line."""
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())


@contextmanager
def child(module: str, *arguments: str) -> Iterator[Child]:
    """Run a module; close its stdin at the end, and kill it if it does not exit."""
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
