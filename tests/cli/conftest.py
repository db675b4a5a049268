"""Fixtures that run the command line as a process, and return its output and exit code.

Tests that only read a finished run share one run of one backend per file.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import Backend
from tests.fakes.forkserver import run_command

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
        return run_command(arguments, project, typed)

    return call


@pytest.fixture
def run_anew(project: Path) -> Run:
    """Like `run`, in a new Python process; each command is tested in this way at least once."""

    def call(*arguments: str, typed: str = "") -> subprocess.CompletedProcess[str]:
        command = [*ARKOR, *arguments]
        return subprocess.run(
            command, cwd=project, input=typed, capture_output=True, text=True, timeout=60, check=False
        )

    return call


WriteEntry = Callable[..., Path]


def write_in(
    project: Path, before: str = "", model: str = "scripted/model", steps: int = 5, arguments: str = ""
) -> Path:
    (project / "rows.jsonl").write_text('{"text": "one row is enough for the scripted engine"}\n')
    file = project / "train.py"
    head = "from pathlib import Path\nfrom arkor import Trainer, create_arkor\n"
    data = '{"type": "file", "path": str(Path(__file__).parent / "rows.jsonl")}'
    call = f'trainer = Trainer("demo", {model!r}, {data}, max_steps={steps}{arguments})\n'
    file.write_text(head + textwrap.dedent(before) + call + "arkor = create_arkor(trainer=trainer)\n")
    return file


@pytest.fixture
def write_entry_point(project: Path) -> WriteEntry:
    """Write a `train.py` with a trainer of `steps` steps; `before` and `arguments` are inserted verbatim."""
    return partial(write_in, project)


def started_in(project: Path) -> str:
    """Run five steps with `arkor start` and return the id of the run."""
    write_in(project)
    started = run_command(("start",), project)
    assert started.returncode == 0, started.stderr
    return started.stdout.split()[2]


@pytest.fixture(scope="module")
def module_run(module_backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> str:
    project = tmp_path_factory.mktemp("lasting") / "project"
    project.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ARKOR_HOME", str(module_backend.home))
        return started_in(project)


@pytest.fixture
def finished(backend_env: Backend, module_run: str) -> str:
    """The id of a completed run of five steps, shared by the tests of a file, which must not change it."""
    return module_run


@pytest.fixture
def finished_run(backend: Backend, project: Path) -> str:
    """The id of a completed run of five steps, in a backend of the test's own."""
    return started_in(project)


#: A stand-in for torch with the attributes that describe the device.
TORCH = """
from types import SimpleNamespace as Namespace
__version__ = "2.0"
cuda = Namespace(is_available=lambda: False)
backends = Namespace(mps=cuda)
get_num_threads = lambda: 2
"""


@pytest.fixture
def fast_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with empty training libraries, which are imported quickly."""
    folder = tmp_path / "quick"
    for name in ("torch", "transformers", "peft", "trl"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(TORCH if name == "torch" else "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
    return folder
