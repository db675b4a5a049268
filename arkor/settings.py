"""Environment variables and paths, read at each call and never at import."""

from __future__ import annotations

import math
import os
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from arkor.errors import InvalidConfig

VERSION = "0.1.0"

#: The version of the wire protocol; raised only when an older peer could misunderstand a newer one.
PROTOCOL = 1

#: The managed Arkor cloud.
MANAGED_CLOUD_API_URL = "https://api.arkor.ai"

#: The domain of the managed cloud's deployments: `https://<slug>.arkor.app/v1`.
MANAGED_CLOUD_APP_DOMAIN = "arkor.app"

#: The model whose weights come in a Python package instead of from the hub.
STARTER_MODEL = "smollm2-135m-instruct"

#: The models that the managed cloud fine-tunes. A backend of your own takes others too: docs/models.md.
SUPPORTED_MODELS = ("unsloth/gemma-4-E4B-it",)


def arkor_home() -> Path:
    """Return the folder of all that arkor writes for a user: `ARKOR_HOME`, else `~/.arkor`."""
    try:
        return Path(os.environ.get("ARKOR_HOME") or "~/.arkor").expanduser().absolute()
    except RuntimeError:
        raise InvalidConfig("ARKOR_HOME", "must be set to a folder, because this user has no home folder") from None


def is_managed_cloud(base_url: str) -> bool:
    """Return whether a backend is the managed cloud, which has its own forms of some fields."""
    return urlsplit(base_url).hostname == urlsplit(MANAGED_CLOUD_API_URL).hostname


def cloud_api_url_from_env() -> str | None:
    """Return `ARKOR_CLOUD_API_URL` without a trailing slash; None if it is unset or empty."""
    return (os.environ.get("ARKOR_CLOUD_API_URL") or "").strip().rstrip("/") or None


def token_from_env() -> str | None:
    return (os.environ.get("ARKOR_TOKEN") or "").strip() or None


def ca_bundle_from_env() -> tuple[str, str] | None:
    """Return the name and the value of the first variable that sets a CA bundle, file or folder.

    requests reads `REQUESTS_CA_BUNDLE` and `CURL_CA_BUNDLE` itself; Python and other clients read
    `SSL_CERT_FILE`.
    """
    names = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
    return next(((name, path) for name in names if (path := os.environ.get(name))), None)


def dry_run_from_env() -> bool:
    """`ARKOR_DRY_RUN`: whether every submitted run is a dry run, regardless of its script."""
    return (os.environ.get("ARKOR_DRY_RUN") or "0") != "0"


def serving_idle_seconds() -> float:
    """`ARKOR_SERVING_IDLE_SECONDS`: when the idle inference process exits (600; 0 is never)."""
    text = os.environ.get("ARKOR_SERVING_IDLE_SECONDS") or "600"
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not 0 <= seconds < math.inf:
        raise InvalidConfig("ARKOR_SERVING_IDLE_SECONDS", f"must be seconds, of at least 0, not {text!r}")
    return seconds


#: The values of `ARKOR_SERVING_ENGINE`.
SERVING_ENGINES = ("auto", "transformers", "llama.cpp")


def serving_engine() -> str:
    """`ARKOR_SERVING_ENGINE`: the engine that computes answers, by default the fastest for each."""
    name = (os.environ.get("ARKOR_SERVING_ENGINE") or "auto").strip()
    if name not in SERVING_ENGINES:
        raise InvalidConfig("ARKOR_SERVING_ENGINE", f"must be one of {', '.join(SERVING_ENGINES)}, not {name!r}")
    return name


def _count(name: str, default: int) -> int:
    text = (os.environ.get(name) or "").strip()
    if text and not text.isdecimal():
        raise InvalidConfig(name, f"must be a whole number of at least 0, not {text!r}")
    return int(text or default)


#: The cache size for base models; 0 is half of the device.
serving_memory_bytes = partial(_count, "ARKOR_SERVING_MEMORY_BYTES", 0)
#: How many checkpoints are kept besides the best; 0 is all.
max_kept_checkpoints = partial(_count, "ARKOR_KEEP_CHECKPOINTS", 2)
#: How many runs an organisation may have queued or running.
max_queued_runs = partial(_count, "ARKOR_MAX_QUEUED_RUNS", 100)
#: How many event streams a user may have open.
max_streams = partial(_count, "ARKOR_MAX_STREAMS", 100)


def check_limits() -> None:
    """Raise `InvalidConfig` for the first limit, or the engine, with an invalid value."""
    limits = (serving_idle_seconds, serving_memory_bytes, max_kept_checkpoints, max_queued_runs, max_streams)
    for setting in (*limits, serving_engine):
        setting()
