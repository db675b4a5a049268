"""The published files: wheel and sdist have the same content, and the wheel runs the README's script."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import Distribution, PathDistribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from arkor.settings import VERSION
from tests.conftest import PROJECT, install_starter, stop_backend

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


def link_requirements(wheel: Path, extra: str, site: Path) -> None:
    """Link the installed packages that the wheel requires, and no others, into the folder `site`.

    The installer then has only the wheel to add, and Python finds the packages compiled.
    """
    (metadata,) = (entry for entry in zipfile.Path(wheel).iterdir() if entry.name.endswith(".dist-info"))
    waiting: list[tuple[Distribution, str]] = [(PathDistribution(metadata), name) for name in ("", extra)]
    seen: set[tuple[str, str]] = set()
    while waiting:
        package, extra = waiting.pop()
        if (package.name, extra) in seen:
            continue
        seen.add((package.name, extra))
        for requirement in map(Requirement, package.requires or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                required = distribution(requirement.name)
                waiting += [(required, name) for name in ("", *requirement.extras)]
                for name in {file.parts[0] for file in required.files or []} - {"..", "__pycache__"}:
                    if not (site / name).exists():
                        (site / name).symlink_to(str(required.locate_file(name)))


def test_the_command_of_the_wheel_writes_a_project(dist: Path, tmp_path: Path) -> None:
    """As `uvx --from "arkor[local]" arkor init` does: a new environment with the command alone."""
    environment, folder = tmp_path / "venv", tmp_path / "my-bot"
    call(*UV, "venv", "--quiet", "--python", sys.executable, str(environment))
    (wheel,), (site,) = dist.glob("*.whl"), environment.glob("lib/python*/site-packages")
    link_requirements(wheel, "local", site)
    python = str(environment / "bin" / "python")
    call(*UV, "pip", "install", "--quiet", "--no-deps", "--python", python, str(wheel))
    for template in ("triage", "translate", "redaction", "blank"):
        printed = call(
            str(environment / "bin" / "arkor"), "init", str(folder), "--template", template, "--yes", UV="uv"
        )
        assert printed.endswith("  uv run arkor start\n")
        assert (folder / "train.py").is_file()
    documentation = Path(call(str(environment / "bin" / "arkor"), "docs").strip())
    assert (documentation / "llms.txt").is_file()
    assert documentation.is_relative_to(environment.resolve())


def test_the_script_of_the_readme_runs_where_only_the_wheel_is_installed(
    dist: Path, starter: Path, tmp_path: Path
) -> None:
    environment, home, folder = tmp_path / "venv", tmp_path / "arkor-home", tmp_path / "project"
    python = str(environment / "bin" / "python")
    install = [*UV, "pip", "install", "--quiet", "--python", python, "--constraint", str(PROJECT / "requirements.lock")]
    call(*UV, "venv", "--quiet", "--python", sys.executable, str(environment))
    (wheel,), (site,) = dist.glob("*.whl"), environment.glob("lib/python*/site-packages")
    link_requirements(wheel, "local", site)
    call(*install, f"arkor[local] @ {wheel.as_uri()}")
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
