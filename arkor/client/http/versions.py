"""Versions of client and backend: the deprecation warning of a backend, and the command that upgrades arkor."""

from __future__ import annotations

import importlib.util
import logging
import re
import sys
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path

logger = logging.getLogger("arkor")

_MAX_MESSAGE_LENGTH = 500  # characters

_warn_lock = threading.Lock()
_warned: set[str] = set()


class ArkorDeprecationWarning(DeprecationWarning):
    """The backend will stop to understand this version; shown once per process."""


def report_deprecation(headers: Mapping[str, str]) -> None:
    """Warn once per process, in the name of the main script, so that the warning shows by default."""
    if not headers.get("Deprecation") or headers["Deprecation"].strip().lower() == "false":
        return
    with _warn_lock:
        if _warned:
            return
        _warned.add("deprecation")
    sunset = _line(headers.get("Sunset") or "")
    message = _message(headers.get("Warning")) or "the backend will stop to support this version of arkor"
    text = f"{message} (ends on {sunset})" if sunset else message
    try:
        warnings.warn_explicit(text, ArkorDeprecationWarning, "arkor", 1, module="__main__")
    except ArkorDeprecationWarning:  # warnings are errors here; a call must not fail because of this one
        logger.warning("%s", text)


def _message(value: str | None) -> str | None:
    """`299 - "message"` → `message`; a text of another form as it is."""
    if not value:
        return None
    _, quote, rest = value.partition('"')
    text = rest.rsplit('"', 1)[0].replace('\\"', '"') if quote and '"' in rest else value
    return _line(text) or None


def _line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:_MAX_MESSAGE_LENGTH]


_UV = re.compile(r"^\s*uv\s*=", re.MULTILINE)


def upgrade_command(prefix: str | Path | None = None) -> str:
    """The command for the environment at `prefix` (default: this one): that of pip, uv, or pipx."""
    home = Path(prefix or sys.prefix)
    if (home / "uv-receipt.toml").exists():
        return "uv tool upgrade arkor"
    if (home / "pipx_metadata.json").exists():
        return "pipx upgrade arkor"
    return "uv pip install --upgrade arkor" if _is_uv_environment(home) else "pip install --upgrade arkor"


def _is_uv_environment(home: Path) -> bool:
    """Whether uv made that environment and put no pip into it."""
    try:
        made_by_uv = _UV.search((home / "pyvenv.cfg").read_text("utf-8", "replace")) is not None
    except OSError:
        return False
    return made_by_uv and not _has_pip(home)


def _has_pip(home: Path) -> bool:
    if home == Path(sys.prefix):
        return importlib.util.find_spec("pip") is not None
    return any(home.glob("lib/python*/site-packages/pip/__init__.py"))
