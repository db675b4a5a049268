"""The command as a person calls it: a process of its own, with what it printed and how it ended."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Backend

ARKOR = [sys.executable, "-m", "arkor"]

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


@pytest.fixture
def run(project: Path) -> Run:
    """`run("start", …)` in the project's folder."""

    def call(*arguments: str, typed: str = "") -> subprocess.CompletedProcess[str]:
        command = [*ARKOR, *arguments]
        return subprocess.run(
            command, cwd=project, input=typed, capture_output=True, text=True, timeout=60, check=False
        )

    return call


@pytest.fixture
def write_entry(project: Path) -> Callable[..., Path]:
    """Write a `train.py` with a trainer of so many steps; `before` and `arguments` go into it verbatim."""
    (project / "rows.jsonl").write_text('{"text": "one row is enough for the scripted engine"}\n')

    def write(before: str = "", model: str = "scripted/model", steps: int = 5, arguments: str = "") -> Path:
        file = project / "train.py"
        head = "from pathlib import Path\nfrom arkor import Trainer, create_arkor\n"
        data = '{"type": "file", "path": str(Path(__file__).parent / "rows.jsonl")}'
        call = f'trainer = Trainer("demo", {model!r}, {data}, max_steps={steps}{arguments})\n'
        file.write_text(head + textwrap.dedent(before) + call + "arkor = create_arkor(trainer=trainer)\n")
        return file

    return write


@pytest.fixture
def finished(backend: Backend, write_entry: Callable[..., Path], run: Run) -> str:
    """The id of a run of five steps that has completed."""
    write_entry()
    started = run("start")
    assert started.returncode == 0, started.stderr
    return started.stdout.split()[2]
