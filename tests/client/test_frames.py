"""The gate in front of sseclient-py against the rules of the WHATWG standard, for any split of the bytes."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arkor.client.frames import MAX_FRAME_BYTES, FrameTooLarge, frames

Parsed = list[tuple[str, str, "str | None", "str | None"]]


def parse(*chunks: bytes) -> Parsed:
    return [(frame.event, frame.data, frame.id, frame.retry) for frame in frames(chunks)]


CASES: list[tuple[str, bytes, Parsed]] = [
    ("a plain frame", b"event: a\ndata: b\nid: 1\n\n", [("a", "b", "1", None)]),
    ("the default type", b"data: x\n\n", [("message", "x", None, None)]),
    ("lines are joined", b"data: YHOO\ndata: +2\ndata: 10\n\n", [("message", "YHOO\n+2\n10", None, None)]),
    ("one space is stripped", b"data:  two\n\ndata:none\n\n", [("message", " two", None, None), ("message", "none", None, None)]),
    ("a field without a colon", b"data\n\ndata\ndata\n\ndata:", [("message", "", None, None), ("message", "\n", None, None)]),
    ("a comment", b": hello\ndata: x\n\n", [("message", "x", None, None)]),
    ("an unknown field", b"dataset: x\nfoo\ndata: y\n\n", [("message", "y", None, None)]),
    ("CR", b"data: a\r\rdata: b\r\r", [("message", "a", None, None), ("message", "b", None, None)]),
    ("CRLF", b"data: a\r\n\r\ndata: b\r\n\r\n", [("message", "a", None, None), ("message", "b", None, None)]),
    ("mixed line ends", b"data: a\r\n\ndata: b\n\r\n", [("message", "a", None, None), ("message", "b", None, None)]),
    ("a byte-order mark", b"\xef\xbb\xbfdata: a\n\n", [("message", "a", None, None)]),
    ("a second byte-order mark is data", b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\ndata: b\n\n", [("message", "", None, None), ("message", "b", None, None)]),
    ("an id with NUL is ignored", b"id: 1\nid: 2\x003\ndata: a\n\n", [("message", "a", "1", None)]),
    ("an empty id", b"id\ndata: a\n\n", [("message", "a", "", None)]),
    ("a bare id keeps its id", b"id: 7\n\n", [("message", "", "7", None)]),
    ("a retry of digits", b"retry: 3000\ndata: a\n\n", [("message", "a", None, "3000")]),
    ("a retry of other things", b"retry: 3\nretry: 3s\nretry: -1\nretry:  4\ndata: a\n\n", [("message", "a", None, "3")]),
    ("invalid UTF-8", b"data: a\xffb\n\n", [("message", "a\ufffdb", None, None)]),
    ("other line separators are data", "data: a\u2028b\u2029c\u0085d\x0be\x0cf\n\n".encode(), [("message", "a\u2028b\u2029c\u0085d\x0be\x0cf", None, None)]),
    ("a frame cut off by the end", b"data: a\n\nid: 9\ndata: b\n", [("message", "a", None, None)]),
]  # fmt: skip


@pytest.mark.parametrize(("data", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_rules_of_the_standard(data: bytes, expected: Parsed) -> None:
    assert parse(data) == expected
    assert parse(*(data[i : i + 1] for i in range(len(data)))) == expected


@given(st.sampled_from([case[1] for case in CASES]), st.sampled_from([case[1] for case in CASES]), st.data())
def test_any_split_gives_the_same_frames(first: bytes, second: bytes, data: st.DataObject) -> None:
    whole = first + b"\n\n" + second
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert parse(*pieces) == parse(whole)


@given(st.lists(st.dictionaries(st.text(), st.text() | st.integers()), max_size=8), st.data())
def test_truncated_anywhere_it_is_a_prefix(objects: list[dict[str, object]], data: st.DataObject) -> None:
    encoded = [f"id: {i}\ndata: {json.dumps(o, ensure_ascii=False)}\n\n".encode() for i, o in enumerate(objects)]
    whole = b"".join(encoded)
    cut = data.draw(st.integers(0, len(whole)))
    got = parse(whole[:cut])
    assert [json.loads(item[1]) for item in got] == objects[: len(got)]
    assert sum(map(len, encoded[: len(got)])) <= cut


def test_a_frame_too_large_is_refused_with_bounded_memory() -> None:
    with pytest.raises(FrameTooLarge, match="one frame of"):
        list(frames(b"x" * 65536 for _ in range(MAX_FRAME_BYTES // 65536 + 2)))


def test_a_frame_of_very_many_lines_is_refused_quickly() -> None:
    began = time.monotonic()
    with pytest.raises(FrameTooLarge, match="lines"):
        list(frames([b"data: 0123456789\n" * 500_000 + b"\n"]))
    assert time.monotonic() - began < 5
