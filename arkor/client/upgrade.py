"""How this installation of arkor is upgraded, as the environment that it lives in has it."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

_UV = re.compile(r"^\s*uv\s*=", re.MULTILINE)


def upgrade_command(prefix: str | Path | None = None) -> str:
    """The command for the environment at `prefix` (default: this one): that of pip, uv, or pipx."""
    home = Path(prefix or sys.prefix)
    if (home / "uv-receipt.toml").exists():
        return "uv tool upgrade arkor"
    if (home / "pipx_metadata.json").exists():
        return "pipx upgrade arkor"
    return "uv pip install --upgrade arkor" if _is_of_uv(home) else "pip install --upgrade arkor"


def _is_of_uv(home: Path) -> bool:
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
