"""Frames: their bytes, which lines are events at all, and what a cursor may be."""

from __future__ import annotations

import pytest

from arkor.backend.runs.sse import END, PING, cursor_frame, frame, parse_cursor


def test_the_bytes() -> None:
    line = b'{"type":"training.log","message":"\xc3\xa9 \\n"}'
    assert frame(12, line) == ("training.log", b"id: 12\nevent: training.log\ndata: " + line + b"\n\n")
    assert cursor_frame(30) == b"id: 30\n\n"
    assert PING == b"event: ping\ndata: {}\n\n"
    assert END == b"event: end\ndata: {}\n\n"


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"garbage",
        b'{"type":"training.log","step":',
        b'{"type":"training.log"} {"type":"training.log"}',
        b'["training.log"]',
        b"42",
        b"null",
        b"{}",
        b'{"type":null}',
        b'{"type":""}',
        b'{"type":"a\\nid: 7"}',
        b'{"type":"a\\rb"}',
        b'{"type":"\\ud800"}',
        b'{"type":"training.log","loss":NaN}',
        b'{"type":"training.log","message":"\xff"}',
        b'{"type":"training.log","message":"\xed\xa0\x80"}',
        b'{"type":"training.log","message":"\x00"}',
        b'{"type":"x","a":' + b"[" * 200_000,
        b'{"type":"training.log","step":' + b"9" * 5000 + b"}",
    ],
)
def test_a_line_that_is_no_event_is_no_frame(line: bytes) -> None:
    assert frame(1, line) is None


def test_a_line_that_somebody_has_edited() -> None:
    """Other line ends, other spaces, another order: still an event, still one frame."""
    expected = b'id: 5\nevent: x\ndata: {"step": 1,  "type": "x"} \n\n'
    assert frame(5, b'{"step": 1,\r "type": "x"}\r') == ("x", expected)


@pytest.mark.parametrize(
    ("text", "offset"),
    [(None, 0), ("", 0), ("0", 0), ("42", 42), (" 42 ", 42), ("007", 7)]
    + [(odd, 0) for odd in ("-1", "+1", "1.5", "abc", "²", "١", "1_000", "9" * 5000, "0x10", "\ufffd")],
)
def test_cursor(text: str | None, offset: int) -> None:
    assert parse_cursor(text) == offset
