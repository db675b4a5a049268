"""The estimates of checks, cached for a run of the same configuration.

Each estimate is a file named by the hash of its configuration.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arkor.backend.runs.paths import checks_folder
from arkor.files import write_atomically
from arkor.protocol.codec import dumps, to_wire
from arkor.protocol.estimates import Estimate, parse_estimate

#: How many of the latest estimates are kept.
MAX_ESTIMATES = 200


def store_estimate(home: Path, config: Mapping[str, Any], estimate: Estimate) -> None:
    """Cache the estimate for a configuration in wire format, without a token. Raise OSError."""
    folder = checks_folder(home)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomically(_estimate_file(home, config), dumps(to_wire(estimate)))
    files = sorted(folder.glob("*.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    for stale in files[MAX_ESTIMATES:]:
        stale.unlink(missing_ok=True)


def load_estimate(home: Path, config: Mapping[str, Any]) -> Estimate | None:
    with contextlib.suppress(OSError, ValueError):
        return parse_estimate(json.loads(_estimate_file(home, config).read_bytes()))
    return None


def _estimate_file(home: Path, config: Mapping[str, Any]) -> Path:
    text = json.dumps(config, sort_keys=True, ensure_ascii=False)
    return checks_folder(home) / f"{hashlib.sha256(text.encode()).hexdigest()}.json"
