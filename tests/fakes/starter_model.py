"""The starter model, converted once for all tests that only use it."""

from __future__ import annotations

from pathlib import Path

from arkor.backend.compute.models import local_folder
from arkor.backend.runs.paths import models_folder
from arkor.settings import STARTER_MODEL


def convert_starter(home: Path) -> Path:
    """The folder of the converted model below `home`; several processes may ask for it at once."""
    return Path(local_folder(STARTER_MODEL, home, lambda _: None))


def install_starter(home: Path, starter: Path) -> None:
    """That folder, in the place where a backend of `home` looks for it."""
    models_folder(home).mkdir(parents=True, mode=0o700)
    (models_folder(home) / STARTER_MODEL).symlink_to(starter)
