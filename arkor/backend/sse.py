"""Logged event → the bytes of a server-sent event, the inverse of `client/frames.py`.

A logged line is strict JSON on one line already, so it goes out as it is.
"""

from __future__ import annotations

from collections.abc import Iterable

PING = b"event: ping\ndata: {}\n\n"
END = b"event: end\ndata: {}\n\n"

_LONGEST_CURSOR = 18  # digits; a file has fewer


def frames(events: Iterable[tuple[int, str, bytes]]) -> bytes:
    """(id, type, line) of each event → their frames, in one piece."""
    return b"".join([b"id: %d\nevent: %s\ndata: %s\n\n" % (id_, kind.encode(), line) for id_, kind, line in events])


def mark(id_: int) -> bytes:
    """A frame without data: it moves the reader's cursor and says nothing."""
    return b"id: %d\n\n" % id_


def cursor(last_event_id: str | None) -> int:
    """A `Last-Event-ID` → where to go on; what is no id of ours begins at the start, so that nothing gets lost."""
    text = (last_event_id or "").strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _LONGEST_CURSOR else 0
