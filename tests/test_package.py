"""What is published: wheel and sdist hold the same files, and the wheel alone runs the README's script."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from arkor.settings import VERSION
from tests.conftest import PROJECT, stop_backend
from tests.fakes.starter_model import install_starter

pytestmark = pytest.mark.slow

UV = [sys.executable, "-m", "uv"]


def call(*command: str, **environment: str) -> str:
    """Run a command to its end and return what it printed; nothing of this checkout is importable in it."""
    known = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    find_links = os.environ.get("PIP_FIND_LINKS", "")
    environment = {**known, "UV_FIND_LINKS": find_links, **environment}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    call(
        *UV,
        "build",
        "--quiet",
        "--no-build-isolation",
        "--python",
        sys.executable,
        "--out-dir",
        str(folder),
        str(PROJECT),
    )
    return folder


def test_the_wheel_is_built_from_the_sdist_and_holds_every_file(dist: Path) -> None:
    with tarfile.open(dist / f"arkor-{VERSION}.tar.gz") as sdist:
        shipped = {name.partition("/")[2] for name in sdist.getnames()}
    with zipfile.ZipFile(dist / f"arkor-{VERSION}-py3-none-any.whl") as wheel:
        installed = set(wheel.namelist())
    tracked = subprocess.check_output(["git", "ls-files", "arkor"], cwd=PROJECT, text=True).splitlines()
    assert [file for file in tracked if file not in shipped or file not in installed] == []
    assert {"README.md", "LICENSE", "CHANGELOG.md", "pyproject.toml"} <= shipped
    pages = subprocess.check_output(["git", "ls-files", "docs/*.md", "docs/llms.txt"], cwd=PROJECT, text=True).split()
    assert {file for file in installed if file.startswith("arkor/docs/")} == {f"arkor/{page}" for page in pages}


def test_the_script_of_the_readme_runs_where_only_the_wheel_is_installed(
    dist: Path, starter: Path, tmp_path: Path
) -> None:
    environment, home, folder = tmp_path / "venv", tmp_path / "arkor-home", tmp_path / "project"
    python = str(environment / "bin" / "python")
    install = [*UV, "pip", "install", "--quiet", "--python", python, "--constraint", str(PROJECT / "requirements.lock")]
    call(*UV, "venv", "--quiet", "--python", sys.executable, str(environment))
    call(*install, f"arkor[local] @ {next(dist.glob('*.whl')).as_uri()}")
    install_starter(home, starter)
    folder.mkdir()
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", (PROJECT / "README.md").read_text("utf-8"), re.M | re.S)
    rows = next(text for language, text in blocks if language == "jsonl")
    script = next(text for language, text in blocks if language == "python")
    (folder / "tickets.jsonl").write_text(rows)
    (folder / "train.py").write_text(script.replace("max_steps=60", "max_steps=3"))
    try:
        printed = subprocess.run(
            [python, "train.py"],
            cwd=folder,
            env={**os.environ, "ARKOR_HOME": str(home)},
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
    finally:
        stop_backend(home)
    assert printed.returncode == 0, printed.stderr
    assert re.findall(r"^3 \d\.\d+", printed.stdout, re.M), printed.stdout
