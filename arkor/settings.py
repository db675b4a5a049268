"""Environment and paths, read when asked and never at import.

What is not here: anything that a backend keeps below its home (`backend/home.py`) and anything of a project
(`client/state.py`).
"""

from __future__ import annotations

import os
from pathlib import Path

VERSION = "0.1.0"

#: The wire protocol that this package speaks. Raised only when an older peer could misunderstand a newer one.
PROTOCOL = 1

#: The managed Arkor cloud.
MANAGED_CLOUD_API_URL = "https://api.arkor.ai"

#: The model that needs no hub: its weights come in a Python package.
STARTER_MODEL = "smollm2-135m-instruct"


def arkor_home() -> Path:
    """The folder for everything that arkor writes for a user: `ARKOR_HOME`, else `~/.arkor`."""
    return Path(os.environ.get("ARKOR_HOME") or Path.home() / ".arkor").expanduser().absolute()


def cloud_api_url_from_env() -> str | None:
    """`ARKOR_CLOUD_API_URL` without a trailing slash, or None when it is unset or empty."""
    return (os.environ.get("ARKOR_CLOUD_API_URL") or "").strip().rstrip("/") or None


def token_from_env() -> str | None:
    """`ARKOR_TOKEN`, or None when it is unset or empty."""
    return (os.environ.get("ARKOR_TOKEN") or "").strip() or None


def dry_run_wanted() -> bool:
    """`ARKOR_DRY_RUN`: whether every run that is submitted is to be a dry run, whatever its script says."""
    return (os.environ.get("ARKOR_DRY_RUN") or "0") != "0"


def serving_idle_seconds() -> float:
    """`ARKOR_SERVING_IDLE_SECONDS`: when the idle serving process leaves and frees its memory (600; 0 is never)."""
    return float(os.environ.get("ARKOR_SERVING_IDLE_SECONDS") or 600)


def serving_memory_bytes() -> int | None:
    """`ARKOR_SERVING_MEMORY_BYTES`: what base models may keep for inference; None is half of the device's memory."""
    return int(os.environ.get("ARKOR_SERVING_MEMORY_BYTES") or 0) or None


def checkpoints_kept() -> int:
    """`ARKOR_KEEP_CHECKPOINTS`: how many of a run's newest checkpoints stay, beside the best one (2; 0 is all)."""
    return _count("ARKOR_KEEP_CHECKPOINTS", 2)


def queued_runs_allowed() -> int:
    """`ARKOR_MAX_QUEUED_RUNS`: how many runs of an organisation may be queued or running at a time (100)."""
    return _count("ARKOR_MAX_QUEUED_RUNS", 100)


def streams_allowed() -> int:
    """`ARKOR_MAX_STREAMS`: how many event streams a user may have open at a time (100)."""
    return _count("ARKOR_MAX_STREAMS", 100)


def _count(name: str, default: int) -> int:
    text = os.environ.get(name) or ""
    return int(text) if text.isdecimal() else default
