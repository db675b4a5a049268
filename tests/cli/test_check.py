"""`arkor check`: the report, its JSON, the exit codes, and that it starts no run."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import ARKOR, Run, WriteEntry
from tests.conftest import Backend

pytestmark = pytest.mark.slow  # every test starts processes of its own


def test_a_run_that_is_fine(run: Run, run_anew: Run, write_entry_point: WriteEntry, backend_env: Backend) -> None:
    write_entry_point(before="print('hello from train.py')\n", steps=5)
    done = run_anew("check")
    assert done.returncode == 0, done.stderr
    assert "No problems found; the run can start: 1 rows to train on, read as text" in done.stdout
    assert "5 steps of" in done.stdout
    assert run("jobs", "--json").stdout.strip() == "[]"


def test_json_is_all_that_is_printed(run: Run, write_entry_point: WriteEntry, backend_env: Backend) -> None:
    write_entry_point(before="print('hello from train.py')\n")
    done = run("check", "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["ok"], found["trainRows"]) == (0, True, 1)
    assert "hello from train.py" in done.stderr


def test_bad_rows_are_one_and_each_has_its_line(
    run: Run, write_entry_point: WriteEntry, project: Path, backend_env: Backend
) -> None:
    entry = write_entry_point()
    (project / "rows.jsonl").write_text('{"text": "fine"}\n{"text": 3}\n{"txt": "x"}\n')
    done = run("check", str(entry))
    assert done.returncode == 1
    assert done.stdout.splitlines()[:3] == [
        "This run cannot be trained: 2 problems",
        'problem: line 2: text: must be a string like "Hello", not 3',
        "problem: line 3: text: is missing; the row has txt",
    ]
    assert json.loads(run("check", "--json").stdout)["problemCount"] == 2


def test_a_wrong_call_or_configuration_is_two(run: Run, write_entry_point: WriteEntry, backend_env: Backend) -> None:
    assert run("check", "nowhere").returncode == 2
    write_entry_point(arguments=", batch_size=0")
    done = run("check")
    assert done.returncode == 2
    assert "batch_size: must be a whole number of at least 1, not 0" in done.stderr
    write_entry_point(model="scripted/fail")
    done = run("check")
    assert (done.returncode, done.stdout) == (2, "")
    assert "fails by design" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_entry_that_starts_itself_is_only_looked_at(
    run: Run, write_entry_point: WriteEntry, backend_env: Backend
) -> None:
    file = write_entry_point()
    file.write_text(f"{file.read_text()}\ntrainer.wait()\n")
    assert run("check").returncode == 0
    assert run("jobs", "--json").stdout.strip() == "[]"


def test_a_run_that_was_checked_says_how_good_the_estimate_was(
    run: Run, write_entry_point: WriteEntry, backend: Backend
) -> None:
    write_entry_point(steps=3)
    assert run("check").returncode == 0
    started = run("start")
    assert started.returncode == 0, started.stderr
    assert "estimated 0:00" in started.stderr


def test_an_output_without_its_letters_gets_others(
    write_entry_point: WriteEntry, project: Path, backend_env: Backend
) -> None:
    write_entry_point()
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*ARKOR, "check"], cwd=project, capture_output=True, env=environment, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
