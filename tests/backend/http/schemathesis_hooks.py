"""Schemathesis hooks for facts that the schema does not contain: how to send a zip, and the URL of an uploaded file."""

from __future__ import annotations

import os
from typing import Any

import schemathesis


@schemathesis.serializer("application/zip")
def send_zip(_context: Any, value: Any) -> bytes:
    """Send the generated value without encoding it."""
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")


@schemathesis.hook
def before_call(_context: Any, case: Any, _kwargs: Any) -> None:
    """Replace URLs of uploaded files by the URL of a file that exists."""
    body = case.body
    config = body.get("config") if isinstance(body, dict) else None
    source = config.get("datasetSource") if isinstance(config, dict) else None
    if isinstance(source, dict) and str(source.get("url")).startswith("/v1/datasets/"):
        source["url"] = os.environ["UPLOADED"]
