"""Logged event → the bytes of a server-sent event, the inverse of `client/streaming/sse.py`.

A logged line is strict JSON on one line already, so it goes out as it is; one that is not was written by somebody else
and goes nowhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

PING = b"event: ping\ndata: {}\n\n"
END = b"event: end\ndata: {}\n\n"

_MAX_CURSOR_DIGITS = 18  # digits; a file has fewer


def frame(id_: int, line: bytes) -> tuple[str, bytes] | None:
    """A line of a log → the event's type and its frame; None when the line is no event."""
    kind = _type(line)
    if kind is None:
        return None
    if b"\r" in line:
        line = line.replace(b"\r", b" ")  # between two tokens, or it would not be JSON; in a frame it would end a line
    return kind, b"id: %d\nevent: %s\ndata: %s\n\n" % (id_, kind.encode(), line)


def cursor_frame(id_: int) -> bytes:
    """A frame without data: it moves the reader's cursor and says nothing."""
    return b"id: %d\n\n" % id_


def parse_cursor(last_event_id: str | None) -> int:
    """A `Last-Event-ID` → where to go on; what is no id of ours begins at the start, so that nothing gets lost."""
    text = (last_event_id or "").strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MAX_CURSOR_DIGITS else 0


def _reject_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


_parse: Callable[[str], tuple[Any, int]] = json.JSONDecoder(parse_constant=_reject_constant).raw_decode


def _type(line: bytes) -> str | None:
    try:
        text = line.decode().strip()
        data, end = _parse(text)
    except (ValueError, RecursionError):
        return None
    kind = data.get("type") if isinstance(data, dict) and end == len(text) else None
    return kind if isinstance(kind, str) and kind and kind.isprintable() else None
