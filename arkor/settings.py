"""Environment and paths, read when asked and never at import.

What is not here: anything that a backend keeps below its home (`backend/runs/paths.py`) and anything of a project
(`client/project_state.py`).
"""

from __future__ import annotations

import math
import os
from pathlib import Path

from arkor.errors import InvalidConfig

VERSION = "0.1.0"

#: The wire protocol that this package speaks. Raised only when an older peer could misunderstand a newer one.
PROTOCOL = 1

#: The managed Arkor cloud.
MANAGED_CLOUD_API_URL = "https://api.arkor.ai"

#: The model that needs no hub: its weights come in a Python package.
STARTER_MODEL = "smollm2-135m-instruct"


def arkor_home() -> Path:
    """The folder for everything that arkor writes for a user: `ARKOR_HOME`, else `~/.arkor`.

    Raises `InvalidConfig` where that is no folder, as this user has no home.
    """
    try:
        return Path(os.environ.get("ARKOR_HOME") or "~/.arkor").expanduser().absolute()
    except RuntimeError:
        raise InvalidConfig("ARKOR_HOME", "must be set to a folder, for this user has no home here") from None


def cloud_api_url_from_env() -> str | None:
    """`ARKOR_CLOUD_API_URL` without a trailing slash, or None when it is unset or empty."""
    return (os.environ.get("ARKOR_CLOUD_API_URL") or "").strip().rstrip("/") or None


def token_from_env() -> str | None:
    """`ARKOR_TOKEN`, or None when it is unset or empty."""
    return (os.environ.get("ARKOR_TOKEN") or "").strip() or None


def ca_bundle_from_env() -> tuple[str, str] | None:
    """The variable that names whom to trust instead of the usual authorities, and the file or folder that it names.

    The first that is set of `REQUESTS_CA_BUNDLE` and `CURL_CA_BUNDLE`, which requests knows by itself, and
    `SSL_CERT_FILE`, which Python and the other clients know.
    """
    names = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
    return next(((name, path) for name in names if (path := os.environ.get(name))), None)


def dry_run_from_env() -> bool:
    """`ARKOR_DRY_RUN`: whether every run that is submitted is to be a dry run, whatever its script says."""
    return (os.environ.get("ARKOR_DRY_RUN") or "0") != "0"


def serving_idle_seconds() -> float:
    """`ARKOR_SERVING_IDLE_SECONDS`: when the idle serving process leaves and frees its memory (600; 0 is never)."""
    text = os.environ.get("ARKOR_SERVING_IDLE_SECONDS") or ""
    try:
        seconds = float(text or 600)
    except ValueError:
        seconds = -1
    if not 0 <= seconds < math.inf:
        raise InvalidConfig("ARKOR_SERVING_IDLE_SECONDS", f"must be seconds, of at least 0, not {text!r}")
    return seconds


def serving_memory_bytes() -> int | None:
    """`ARKOR_SERVING_MEMORY_BYTES`: what base models may keep for inference; None is half of the device's memory."""
    return _count("ARKOR_SERVING_MEMORY_BYTES", 0) or None


def max_kept_checkpoints() -> int:
    """`ARKOR_KEEP_CHECKPOINTS`: how many of a run's newest checkpoints stay, beside the best one (2; 0 is all)."""
    return _count("ARKOR_KEEP_CHECKPOINTS", 2)


def max_queued_runs() -> int:
    """`ARKOR_MAX_QUEUED_RUNS`: how many runs of an organisation may be queued or running at a time (100)."""
    return _count("ARKOR_MAX_QUEUED_RUNS", 100)


def max_streams() -> int:
    """`ARKOR_MAX_STREAMS`: how many event streams a user may have open at a time (100)."""
    return _count("ARKOR_MAX_STREAMS", 100)


def check_limits() -> None:
    """Raises `InvalidConfig` for the first of these variables that is no number, before anything depends on it."""
    for limit in (serving_idle_seconds, serving_memory_bytes, max_kept_checkpoints, max_queued_runs, max_streams):
        limit()


def _count(name: str, default: int) -> int:
    """Raises `InvalidConfig` for what is no whole number: a limit that somebody set is not to be passed over."""
    text = (os.environ.get(name) or "").strip()
    if text and not text.isdecimal():
        raise InvalidConfig(name, f"must be a whole number of at least 0, not {text!r}")
    return int(text or default)
