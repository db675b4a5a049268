"""The benchmark of the event stream prints all its results with few events."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import PROJECT


@pytest.mark.slow
def test_the_whole_table_is_printed() -> None:
    command = [sys.executable, "-m", "tests.benchmarks.stream", "--rounds", "1", "--events", "1000"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=240, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()]
    assert len(rows) == 14
    assert all(any(character.isdigit() for character in row[1]) for row in rows[2:])
