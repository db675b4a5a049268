"""What Schemathesis cannot know of a backend: how a zip is sent, and which uploaded file there is."""

from __future__ import annotations

import os
from typing import Any

import schemathesis


@schemathesis.serializer("application/zip")
def send_zip(_context: Any, value: Any) -> bytes:
    """Whatever it is, as it is."""
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")


@schemathesis.hook
def before_call(_context: Any, case: Any, _kwargs: Any) -> None:
    """A file that is named as if it had been uploaded becomes the one that was."""
    body = case.body
    config = body.get("config") if isinstance(body, dict) else None
    source = config.get("datasetSource") if isinstance(config, dict) else None
    if isinstance(source, dict) and str(source.get("url")).startswith("/v1/datasets/"):
        source["url"] = os.environ["UPLOADED"]
