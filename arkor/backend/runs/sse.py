"""Logged event → bytes of a server-sent event, the inverse of `client/streaming/sse.py`.

A logged line is strict JSON on one line, so it is sent unchanged. A line that is not strict JSON
was not written by arkor and is skipped.
"""

from __future__ import annotations

import json

from arkor.protocol.codec import reject_constant

PING = b"event: ping\ndata: {}\n\n"
END = b"event: end\ndata: {}\n\n"

_STRICT_JSON = json.JSONDecoder(parse_constant=reject_constant)

_MAX_CURSOR_DIGITS = 18  # enough for any file


def frame(id_: int, line: bytes) -> tuple[str, bytes] | None:
    """Return the type of the event in a line of a log and its frame, or None."""
    try:
        data = _STRICT_JSON.decode(line.decode())
    except (ValueError, RecursionError):
        return None
    kind = data.get("type") if isinstance(data, dict) else None
    if not isinstance(kind, str) or not kind or not kind.isprintable():
        return None
    line = line.replace(b"\r", b" ")  # whitespace between tokens here, but the end of a line in a frame
    return kind, b"id: %d\nevent: %s\ndata: %s\n\n" % (id_, kind.encode(), line)


def cursor_frame(id_: int) -> bytes:
    """A frame without data, which only moves the reader's cursor."""
    return b"id: %d\n\n" % id_


def parse_cursor(last_event_id: str | None) -> int:
    """Return the offset in a `Last-Event-ID`, or 0 if it is not one of our ids."""
    text = (last_event_id or "").strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MAX_CURSOR_DIGITS else 0
