"""The benchmark of the event stream prints all its results with few events and watchers."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import PROJECT


@pytest.mark.slow
def test_the_whole_table_is_printed() -> None:
    little = "--rounds 1 --events 1000 --logged 1000 --watchers 10 --idle 2".split()
    command = [sys.executable, "-m", "tests.benchmarks.stream", *little]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=240, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()]
    assert len(rows) == 14
    assert all(any(character.isdigit() for character in row[1]) for row in rows[2:])
