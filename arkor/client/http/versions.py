"""Versions of client and backend: deprecation warnings, and the command that upgrades arkor."""

from __future__ import annotations

import importlib.util
import logging
import re
import sys
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path

from arkor.formatting import one_line

logger = logging.getLogger("arkor")

_MAX_MESSAGE_LENGTH = 500  # characters
_UV = re.compile(r"^\s*uv\s*=", re.MULTILINE)

_first = threading.Lock()  # held from the first warning on


class ArkorDeprecationWarning(DeprecationWarning):
    """The backend will stop supporting this version; shown once per process."""


def report_deprecation(headers: Mapping[str, str]) -> None:
    """Warn once per process, in the name of the main script, so that Python shows it."""
    if not headers.get("Deprecation") or headers["Deprecation"].strip().lower() == "false":
        return
    if not _first.acquire(blocking=False):
        return
    sunset = one_line(headers.get("Sunset") or "", _MAX_MESSAGE_LENGTH)
    message = _warning_text(headers.get("Warning") or "") or "the backend will stop supporting this version of arkor"
    text = f"{message} (ends on {sunset})" if sunset else message
    try:
        warnings.warn_explicit(text, ArkorDeprecationWarning, "arkor", 1, module="__main__")
    except ArkorDeprecationWarning:  # warnings are errors here, but must not fail the call
        logger.warning("%s", text)


def _warning_text(value: str) -> str:
    """Return the quoted text of a `Warning` header (`299 - "text"`), or all of it."""
    _, opening, rest = value.partition('"')
    text = rest.rsplit('"', 1)[0].replace('\\"', '"') if opening and '"' in rest else value
    return one_line(text, _MAX_MESSAGE_LENGTH)


def upgrade_command(prefix: str | Path | None = None) -> str:
    """Return the pip, uv or pipx command that upgrades the environment at `prefix`."""
    folder = Path(prefix or sys.prefix)
    if (folder / "uv-receipt.toml").exists():
        return "uv tool upgrade arkor"
    if (folder / "pipx_metadata.json").exists():
        return "pipx upgrade arkor"
    return "uv pip install --upgrade arkor" if _needs_uv(folder) else "pip install --upgrade arkor"


def _needs_uv(folder: Path) -> bool:
    """Return whether the environment was created by uv and has no pip."""
    try:
        created_by_uv = _UV.search((folder / "pyvenv.cfg").read_text("utf-8", "replace")) is not None
    except OSError:
        return False
    if folder == Path(sys.prefix):
        return created_by_uv and importlib.util.find_spec("pip") is None
    return created_by_uv and not any(folder.glob("lib/python*/site-packages/pip/__init__.py"))
