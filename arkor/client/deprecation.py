"""A backend that will stop to understand this version: said once per process, and never the end of a call."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Mapping

logger = logging.getLogger("arkor")

_LONGEST = 500  # characters

_telling = threading.Lock()
_told: set[str] = set()


class ArkorDeprecationWarning(DeprecationWarning):
    """The backend will stop to understand this version; shown once per process."""


def report_deprecation(headers: Mapping[str, str]) -> None:
    """Warn once per process, in the name of the main script, so that the warning shows by default."""
    if not headers.get("Deprecation") or headers["Deprecation"].strip().lower() == "false":
        return
    with _telling:
        if _told:
            return
        _told.add("deprecation")
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
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:_LONGEST]
