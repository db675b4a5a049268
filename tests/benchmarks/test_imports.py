"""The benchmark of imports prints all its results."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import PROJECT


def test_the_whole_table_is_printed() -> None:
    command = [sys.executable, "-m", "tests.benchmarks.imports", "--rounds", "1"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()]
    assert [row[0] for row in rows[2:]] == ["`import requests`", "`from arkor import Trainer`", "`arkor --help`"]
    assert all(float(row[1]) > 0 for row in rows[2:])
