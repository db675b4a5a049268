"""Environments with pinned packages below `build/`, for the tests that are not part of `make test`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path


def install_once(folder: Path, packages: Sequence[str], install: Callable[[], None]) -> None:
    """Empty the folder and call `install`, unless it has these packages already."""
    stamp = folder / "packages.txt"
    if stamp.exists() and stamp.read_text() == "\n".join(packages):
        return
    print(f"Installing {' '.join(packages)} …", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    install()
    stamp.write_text("\n".join(packages))


def make_venv(folder: Path, *requirements: str, cwd: Path | None = None) -> None:
    """Make a virtual environment in the folder and install the requirements."""
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)], check=True)
    python = str(folder / "bin" / "python")
    subprocess.run([*uv, "pip", "install", "--quiet", "--python", python, *requirements], cwd=cwd, check=True)
