"""Frames: their bytes, and what a cursor may be."""

from __future__ import annotations

import pytest

from arkor.backend.sse import END, PING, cursor, frames


def test_the_bytes() -> None:
    events = [(12, "training.log", b'{"type":"training.log"}'), (30, "x", b"{}")]
    assert frames(events) == (
        b'id: 12\nevent: training.log\ndata: {"type":"training.log"}\n\nid: 30\nevent: x\ndata: {}\n\n'
    )
    assert PING == b"event: ping\ndata: {}\n\n"
    assert END == b"event: end\ndata: {}\n\n"


@pytest.mark.parametrize(
    ("text", "offset"),
    [(None, 0), ("", 0), ("0", 0), ("42", 42), (" 42 ", 42), ("007", 7)]
    + [(odd, 0) for odd in ("-1", "+1", "1.5", "abc", "²", "١", "1_000", "9" * 5000, "0x10", "\ufffd")],
)
def test_cursor(text: str | None, offset: int) -> None:
    assert cursor(text) == offset
