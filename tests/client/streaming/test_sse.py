"""Parsing by the WHATWG standard ("Server-sent events"), for any split of the bytes."""

from __future__ import annotations

import json
import re
import time
import tracemalloc
from collections.abc import Iterator
from itertools import repeat

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from arkor.backend.runs import sse
from arkor.client.streaming.sse import (
    MAX_FRAME_BYTES,
    FrameTooLarge,
    _normalize_frame,
    _parse_with_sseclient,
    frames,
    parse_block,
)
from arkor.protocol import events as ev
from arkor.protocol.codec import dumps

Parsed = list[tuple[str, str, "str | None", "str | None"]]


def parse(*chunks: bytes) -> Parsed:
    return [(frame.event, frame.data, frame.id, frame.retry) for frame in frames(chunks)]


def reference(stream: bytes) -> Parsed:
    """The standard's algorithm over the whole stream, including frames of only an id or a delay."""
    *lines, _unfinished = re.split("\r\n|\n|\r", stream.decode("utf-8", "replace").removeprefix("\ufeff"))
    found: Parsed = []
    data = kind = ""
    event_id = retry = None
    for line in lines:
        name, colon, value = line.partition(":")
        value = value[1:] if value.startswith(" ") else value
        if not line:
            if data:
                found.append((kind or "message", data.removesuffix("\n"), event_id, retry))
            elif event_id is not None or retry is not None:
                found.append(("message", "", event_id, retry))
            data = kind = ""
            event_id = retry = None
        elif colon and not name:
            continue
        elif name == "event":
            kind = value
        elif name == "data":
            data += value + "\n"
        elif name == "id" and "\0" not in value:
            event_id = value
        elif name == "retry" and re.fullmatch("[0-9]+", value):
            retry = value
    return found


def pieces(whole: bytes, cuts: list[int]) -> list[bytes]:
    ends = sorted(cut % (len(whole) + 1) for cut in cuts)
    return [whole[a:b] for a, b in zip([0, *ends], [*ends, len(whole)], strict=True)]


def message(data: str, kind: str = "message", event_id: str | None = None, retry: str | None = None) -> Parsed:
    return [(kind, data, event_id, retry)]


CASES: list[tuple[str, bytes, Parsed]] = [
    ("a plain frame", b"event: a\ndata: b\nid: 1\n\n", message("b", "a", "1")),
    ("the default type", b"data: x\n\n", message("x")),
    ("no frame is like the one before", b"event: a\nid: 1\nretry: 2\ndata: x\n\ndata: y\n\n", [*message("x", "a", "1", "2"), *message("y")]),
    ("blank lines before, between and after", b"\n\n\ndata: x\n\n\n\n\ndata: y\n\n\n", [*message("x"), *message("y")]),
    # data
    ("lines are joined", b"data: YHOO\ndata: +2\ndata: 10\n\n", message("YHOO\n+2\n10")),
    ("data of one empty line", b"data:\n\n", message("")),
    ("data of two empty lines", b"data\ndata\n\n", message("\n")),
    ("data that ends with an empty line", b"data: a\ndata:\n\n", message("a\n")),
    ("without data nothing is dispatched", b"event: a\n\ndata: b\n\n", message("b")),
    ("an end event without data is dropped", b"event: end\nid: 4\n\n", message("", event_id="4")),
    ("NUL in data", b"data: a\0b\n\n", message("a\0b")),
    ("data of colons", b"data::a: b:\n\n", message(":a: b:")),
    # the space after the colon
    ("one space is stripped", b"data:  two\n\ndata:none\n\n", [*message(" two"), *message("none")]),
    ("a space alone is stripped", b"data: \n\n", message("")),
    ("a tab is not", b"data:\ta\ndata: \tb\n\n", message("\ta\n\tb")),
    ("nor what other languages use for one", "data:\u00a0a\ndata:\u3000b\n\n".encode(), message("\u00a0a\n\u3000b")),
    ("spaces behind stay", b"event: a \ndata: b \n\n", message("b ", "a ")),
    # names of fields
    ("a field without a colon", b"data\n\ndata\ndata\n\ndata:", [*message(""), *message("\n")]),
    ("a name with spaces", b" data: a\ndata : b\ndata: c\n\n", message("c")),
    ("a name in capitals", b"DATA: a\nId: 1\ndata: c\n\n", message("c")),
    ("an unknown field", b"dataset: x\nfoo\nextra: 1\n__dict__: 2\ndata: y\n\n", message("y")),
    ("only unknown fields", b"foo: bar\n\n", []),
    # comments
    ("a comment", b": hello\ndata: x\n:\n\n", message("x")),
    ("only a comment", b": hello\n\n:\n\n", []),
    ("a long comment", b":" + b"x" * 3000 + b"\ndata: a\n:data: b\ndata: c\n\n", message("a\nc")),
    ("NUL in a comment", b":a\0b\ndata: c\n\n", message("c")),
    # event
    ("the last type counts", b"event: a\nevent: b\ndata: c\n\n", message("c", "b")),
    ("an empty type is the default", b"event: a\nevent:\ndata: c\n\nevent\ndata: d\n\n", [*message("c"), *message("d")]),
    # id
    ("the last id counts", b"id: 1\nid: 2\ndata: a\n\n", message("a", event_id="2")),
    ("an id with NUL is ignored", b"id: 1\nid: 2\x003\ndata: a\n\n", message("a", event_id="1")),
    ("an id of NUL alone", b"id:\0\ndata: a\n\nid: \0\n\n", message("a")),
    ("an empty id", b"id\ndata: a\n\nid:\n\nid: \n\n", [*message("a", event_id=""), *message("", event_id="") * 2]),
    ("a bare id", b"id: 7\n\n", message("", event_id="7")),
    ("a bare id among other things", b": c\nevent: log\nid: 7\nfoo: 1\n\n", message("", event_id="7")),
    ("a bare id, then an event", b"id: 7\n\nevent: a\ndata: b\n\n", [*message("", event_id="7"), *message("b", "a")]),
    ("an id of other letters", "id:  ä \u2028 \ndata: a\n\n".encode(), message("a", event_id=" ä \u2028 ")),
    # retry
    ("a retry of digits", b"retry: 3000\ndata: a\n\nretry:007\n\n", [*message("a", retry="3000"), *message("", retry="007")]),
    ("a retry of other things", b"retry: 3\nretry: 3s\nretry: -1\nretry:  4\nretry: 5 \nretry: 1e3\nretry: 0x3\ndata: a\n\n", message("a", retry="3")),
    ("a retry of digits elsewhere", "retry: ３\nretry: ٣\ndata: a\n\n".encode(), message("a")),
    ("a retry of nothing", b"retry\nretry:\nretry: \ndata: a\n\n", message("a")),
    ("a retry of nothing alone", b"retry: no\n\nretry\n\n", []),
    ("a retry of 26 digits", b"retry: " + b"9" * 26 + b"\ndata: a\n\n", message("a", retry="9" * 26)),
    ("retry in data", b"data: retry: x\ndata:retry\nretry: 1\n\n", message("retry: x\nretry", retry="1")),
    # ends of lines
    ("CR", b"data: a\r\rdata: b\r\r", [*message("a"), *message("b")]),
    ("CRLF", b"data: a\r\n\r\ndata: b\r\n\r\n", [*message("a"), *message("b")]),
    ("mixed", b"data: a\r\n\ndata: b\n\r\ndata: c\r\n\rdata: d\n\rdata: e\r\r\n", [part for letter in "abcde" for part in message(letter)]),
    ("mixed within a frame", b"data: a\rdata: b\ndata: c\r\ndata: d\r\n\r", message("a\nb\nc\nd")),
    ("CR LF is one end, LF CR are two", b"data: a\n\rdata: b\r\ndata: c\n\n", [*message("a"), *message("b\nc")]),
    ("other separators are data", "data: a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg\x1eh\n\n".encode(), message("a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg\x1eh")),
    # the end of the stream
    ("a frame cut off by the end", b"data: a\n\nid: 9\nretry: 9\ndata: b\n", message("a")),
    ("a line cut off by the end", b"data: a\n\nid: 9\ndata: b", message("a")),
    ("nothing", b"", []),
    # encoding
    ("a byte-order mark", b"\xef\xbb\xbfdata: a\n\n", message("a")),
    ("a byte-order mark and nothing else", b"\xef\xbb\xbf", []),
    ("a second one is part of a name", b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\ndata: b\n\n", message("b")),
    ("one further on as well", b"data: a\n\n\xef\xbb\xbfdata: b\n\ndata: c\n\n", [*message("a"), *message("c")]),
    ("one in data stays", b"data:\xef\xbb\xbfa\n\n", message("\ufeffa")),
    ("half a mark", b"\xef\xbbdata: a\n\ndata: b\n\n", message("b")),
    ("invalid UTF-8", b"data: a\xffb\n\n", message("a\ufffdb")),
    ("invalid UTF-8 of several kinds", b"data: \xc0\x80 \xed\xa0\x80 \xf4\x90\x80\x80 \xe2\x82\n\n", message("\ufffd\ufffd \ufffd\ufffd\ufffd \ufffd\ufffd\ufffd\ufffd \ufffd")),
    ("a character cut off by the end of its line", b"data: \xe2\x82\ndata: \xac\n\n", message("\ufffd\n\ufffd")),
    ("invalid UTF-8 in a name", b"data\xff: a\ndata: b\n\n", message("b")),
    ("letters of two, three and four bytes", "data: ok…€😀\n\n".encode(), message("ok…€😀")),
]  # fmt: skip


@pytest.mark.parametrize(("data", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_rules_of_the_standard(data: bytes, expected: Parsed) -> None:
    assert parse(data) == expected
    assert reference(data) == expected
    assert parse(*(data[i : i + 1] for i in range(len(data)))) == expected
    for cut in range(len(data)):
        assert parse(data[:cut], b"", data[cut:]) == expected


BREAKS = [b"\n", b"\r", b"\r\n", b"\n\n", b"\r\r", b"\r\n\r\n", b"\n\r"]
WORDS = [
    b"id",
    b"event",
    b"data",
    b"retry",
    b"data:",
    b"data: ",
    b"id:",
    b"id: 1",
    b"retry:",
    b"retry: 20",
    b"event: end",
    b"data: x",
]
CRUMBS = [b":", b" ", b"  ", b"\0", b"7", b"9" * 26, b"x", b"foo", b"\xef\xbb\xbf", b"\xef", b"\xbb", b"\xff", b"\xe2\x82", b"\xac", b"\xed\xa0\x80"]  # fmt: skip
LETTERS = [letter.encode() for letter in "\u2028\u2029\u0085\x0b\x0c\x1c\u00a0\ufeff３ä€😀"]
SOUP = st.lists(
    st.sampled_from([*BREAKS, *BREAKS, *WORDS, *WORDS, *CRUMBS, *LETTERS]) | st.binary(max_size=3), max_size=40
)
CUTS = st.lists(st.integers(0, 2**16), max_size=8)


@settings(max_examples=500, deadline=None)
@given(SOUP.map(b"".join), CUTS)
@example(b"\xef\xbb\xbfdata: \xe2\x82\xac\r\n\r\n", [1, 2, 10, 11, 13, 14])
def test_any_bytes_in_any_split_are_parsed_by_the_standard(stream: bytes, cuts: list[int]) -> None:
    assert parse(*pieces(stream, cuts)) == reference(stream)


PLAIN_LINES = [
    b"id: 7",
    b"id: 8",
    b"event: training.log",
    b"event: end",
    b"data: {}",
    b"data: x",
    b"data:  y ",
    b"data: ",
]
PLAIN_SOUP = st.lists(
    st.lists(
        st.sampled_from([*PLAIN_LINES, *WORDS, *LETTERS, b": c", b"id: \0", b"\xff", b"\xef\xbb\xbf"]), max_size=4
    ),
    max_size=6,
).map(lambda found: b"".join(b"\n".join(lines) + b"\n\n" for lines in found))


def with_sseclient(block: bytes) -> Parsed:
    """Return the frames of a block, all parsed by sseclient-py."""
    texts = block[:-2].decode("utf-8", "replace").split("\n\n")
    found = [frame for text in texts for frame in _parse_with_sseclient(_normalize_frame(text.encode()))]
    return [(frame.event, frame.data, frame.id, frame.retry) for frame in found]


@settings(max_examples=500, deadline=None)
@given(PLAIN_SOUP)
@example(b"id: 1\nevent: a\ndata: b\n\nevent: a\ndata: b\n\ndata: b\n\nid: \ndata: \n\nid: 1\ndata: b\ndata: c\n\n")
def test_plain_frames_are_parsed_as_by_sseclient(block: bytes) -> None:
    if block:
        assert [(frame.event, frame.data, frame.id, frame.retry) for frame in parse_block(block)] == with_sseclient(
            block
        )


def test_frames_before_one_that_is_too_large_are_yielded() -> None:
    found = frames([b"data: a\n\ndata: " + b"x" * MAX_FRAME_BYTES + b"\n\n"])
    assert next(found).data == "a"
    with pytest.raises(FrameTooLarge):
        next(found)


# The stream of our backend


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
NUMBER = st.none() | st.floats()
STEP = st.integers(0, 2**40)
JSON = st.recursive(
    st.none() | st.booleans() | STEP | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
EVENTS = st.lists(
    st.one_of(
        st.builds(ev.TrainingPreparing, TEXT, TEXT, TEXT),
        st.builds(ev.TrainingStarted, TEXT, TEXT, st.none() | STEP),
        st.builds(ev.TrainingResumed, TEXT, TEXT, STEP, TEXT),
        st.builds(ev.TrainingWarning, TEXT, TEXT, TEXT),
        st.builds(ev.TrainingLog, TEXT, TEXT, STEP, NUMBER, NUMBER, NUMBER, NUMBER, NUMBER),
        st.builds(ev.CheckpointSaved, TEXT, TEXT, STEP),
        st.builds(ev.TrainingCompleted, TEXT, TEXT, st.none() | st.dictionaries(TEXT, JSON, max_size=3)),
        st.builds(ev.TrainingFailedEvent, TEXT, TEXT, TEXT.filter(bool), st.none() | STEP),
        st.builds(ev.TrainingCancelled, TEXT, TEXT, st.none() | STEP),
    ),
    max_size=8,
)


def sent(events: list[ev.Event], mark_every: int = 0) -> list[bytes]:
    """Return the bytes that the backend sends for events with ids from 1, some after a frame of
    only an id.
    """
    found = []
    for number, event in enumerate(events, start=1):
        framed = sse.frame(number, dumps(ev.encode_event(event)).encode())
        assert framed is not None
        found.append((sse.cursor_frame(number) if mark_every and not number % mark_every else b"") + framed[1])
    return found


def received(*chunks: bytes) -> list[tuple[str, str]]:
    """Return id and event of every frame, as text because NaN is not equal to itself; check its
    type.
    """
    found = []
    for kind, data, event_id, _ in parse(*chunks):
        if data:
            assert kind == json.loads(data)["type"]
            found.append((str(event_id), repr(ev.decode_event(json.loads(data)))))
    return found


@settings(deadline=None)
@given(EVENTS, CUTS, st.integers(0, 3))
def test_what_the_backend_sends_arrives(events: list[ev.Event], cuts: list[int], mark_every: int) -> None:
    expected = [(str(number), repr(event)) for number, event in enumerate(events, start=1)]
    assert received(*pieces(b"".join(sent(events, mark_every)), cuts)) == expected


@settings(deadline=None)
@given(EVENTS, CUTS, st.integers(0, 2**16))
def test_a_truncated_stream_is_a_prefix(events: list[ev.Event], cuts: list[int], end: int) -> None:
    parts = sent(events)
    whole = b"".join(parts)
    got = received(*pieces(whole[: end % (len(whole) + 1)], cuts))
    whole_ones = [n for n in range(len(parts) + 1) if sum(map(len, parts[:n])) <= end % (len(whole) + 1)]
    assert got == [(str(number), repr(event)) for number, event in enumerate(events[: whole_ones[-1]], start=1)]


# Large ones


def peak_of(chunks: Iterator[bytes]) -> int:
    """Return the peak memory in bytes while reading these, which must be too large."""
    tracemalloc.start()
    try:
        with pytest.raises(FrameTooLarge, match="a frame of"):
            list(frames(chunks))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "chunk", [b"x" * 65536, b"data: 1\n" * 4096, b"id: 1\nretry: 2\n" * 2048], ids=["a line", "lines", "no data"]
)
def test_an_endless_frame_is_rejected_with_bounded_memory(chunk: bytes) -> None:
    assert peak_of(repeat(chunk)) < 3 * MAX_FRAME_BYTES


def test_a_large_frame_in_one_chunk_is_rejected() -> None:
    with pytest.raises(FrameTooLarge, match=r"16,777,222 bytes in 1 line\(s\)"):
        parse(b"data: " + b"x" * MAX_FRAME_BYTES + b"\n\n")


def test_the_largest_frame_is_accepted() -> None:
    text = b"x" * (MAX_FRAME_BYTES - 7)  # with its newline
    assert parse(b"data: " + text, b"\n", b"\ndata: y\n\n") == [*message(text.decode()), *message("y")]


def test_a_frame_of_too_many_lines_is_rejected_quickly() -> None:
    began = time.monotonic()
    with pytest.raises(FrameTooLarge, match="in 500,000 line"):
        parse(b"data: 0123456789\n" * 500_000 + b"\n")
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("stream", "size"),
    [
        (b"data: " + b"x" * (8 << 20) + b"\n\n", 128),
        (b"data: " + b"x" * (1 << 19) + b"\n\n", 1),
        ((b"data: " + b"x" * 1000 + b"\n") * 2000 + b"\n", 128),
        (b"id: 1\ndata: retry " + b"x" * (8 << 20) + b"\n\n", 65536),
        (b"id: " + b"x" * (4 << 20) + b"\nretry: " + b"1" * (4 << 20) + b"\n\n", 65536),
        (b":" + b"\0id:" * (2 << 20) + b"\nid: \0\ndata: x\n\n", 65536),
        (b"data: x\r\n\r\n" * 20_000, 3),
        (b"\n" * (1 << 20) + b"data: x\n\n", 65536),
    ],
    ids=[
        "a line in crumbs",
        "a line byte by byte",
        "lines in crumbs",
        "retry in it",
        "no data",
        "NUL",
        "CRLF in crumbs",
        "blank lines",
    ],
)
def test_time_is_linear(stream: bytes, size: int) -> None:
    chunks = [stream[i : i + size] for i in range(0, len(stream), size)]
    began = time.process_time()
    assert parse(*chunks)
    assert time.process_time() - began < 5


def test_a_cancelled_run_is_sent_as_other_clients_expect_it() -> None:
    wire = {
        "type": "training.failed",
        "jobId": "j",
        "timestamp": "t",
        "step": 7,
        "artifacts": [],
        "error": "Job cancelled",
    }
    assert ev.decode_event(wire) == ev.TrainingCancelled("j", "t", 7)
    assert ev.encode_event(ev.TrainingCancelled("j", "t", 7)) == {**wire, "artifacts": []}
