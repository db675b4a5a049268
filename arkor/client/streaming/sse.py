"""Parse server-sent events: chunks of bytes into whole frames.

A regular expression parses plain frames, of one line each for id, event and data in this order,
which is all that backends normally send. sseclient-py parses the others, after corrections, because
it deviates from the WHATWG HTML standard (section "Server-sent events") for incomplete frames, mixed
line ends, a byte-order mark, invalid UTF-8, ids with NUL, and frames of only an id.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from sseclient import SSEClient

from arkor.client.http.errors import CHECK_ADDRESS
from arkor.errors import ArkorError

#: The longest frame that is accepted, in bytes.
MAX_FRAME_BYTES = 16 * 1024 * 1024
#: sseclient-py joins lines one by one; a limit on lines × bytes keeps that below a second.
_MAX_FRAME_WORK = 2**32

_BOM = b"\xef\xbb\xbf"
_match_plain = re.compile(r"(?:id: ([^\n\0]*)\n)?(?:event: ([^\n]+)\n)?data: ([^\n]*)").fullmatch
_DATA = re.compile(rb"^data(?::|$)", re.MULTILINE)
_ID_OR_RETRY = re.compile(rb"^(?:id|retry)(?::.*)?$", re.MULTILINE)
_INVALID_FIELDS = re.compile(rb"^(?:id:.*\x00.*|retry(?!: ?[0-9]+$).*)\n?", re.MULTILINE)


class FrameTooLarge(ArkorError):
    """A server-sent frame is longer than the limit."""


class Frame(msgspec.Struct, gc=False):
    """One frame: `id` is None if not set, `retry` is a string of digits (milliseconds)."""

    id: str | None
    event: str
    data: str
    retry: str | None = None


def frames(chunks: Iterable[bytes]) -> Iterator[Frame]:
    """Yield the whole frames of a stream, each as soon as its last byte has arrived."""
    parser = FrameParser()
    for chunk in chunks:
        yield from parser.feed(chunk)


class FrameParser:
    """Parses the bytes of one stream, in pieces of any size."""

    def __init__(self) -> None:
        self._start: bytes | None = b""  # None after the first bytes, which may be a byte-order mark
        self._skip_lf = False  # the last piece ended between CR and LF, perhaps
        self._pending = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield the frames that end in `data`; raise `FrameTooLarge` at the first one that is too large."""
        block = self._split(self._normalize_newlines(data if self._start is None else self._strip_bom(data)))
        if block:
            yield from parse_block(block)
        if len(self._pending) > MAX_FRAME_BYTES:
            raise _too_large(self._pending)

    def _strip_bom(self, data: bytes) -> bytes:
        start = (self._start or b"") + data
        if len(start) < len(_BOM) and _BOM.startswith(start):
            self._start = start
            return b""
        self._start = None
        return start.removeprefix(_BOM)

    def _normalize_newlines(self, data: bytes) -> bytes:
        """Replace CRLF and CR by LF."""
        if self._skip_lf and data:
            data, self._skip_lf = data.removeprefix(b"\n"), False
        if b"\r" in data:
            self._skip_lf = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return data

    def _split(self, data: bytes) -> bytes:
        """Return the whole frames of what has arrived, and keep the rest."""
        pending = self._pending
        if not pending and data.endswith(b"\n\n"):
            return data
        searched = max(0, len(pending) - 1)
        pending += data
        end = pending.rfind(b"\n\n", searched) + 2
        if end == 1:
            return b""
        block = bytes(pending[:end])
        del pending[:end]
        return block


def parse_block(block: bytes) -> Iterator[Frame]:
    """Yield the frames of a block of whole frames; raise `FrameTooLarge`."""
    may_be_plain = len(block) <= MAX_FRAME_BYTES
    for text in block[:-2].decode("utf-8", "replace").split("\n\n"):  # as in the standard
        if may_be_plain and (match := _match_plain(text)):
            event_id, event, data = match.groups()
            yield Frame(event_id, event or "message", data)
        elif frame := _normalize_frame(text.encode()):
            yield from _parse_with_sseclient(frame)


def _parse_with_sseclient(frame: bytes) -> Iterator[Frame]:
    events: Any = SSEClient(iter([frame])).events()
    return (Frame(event.id, event.event, event.data, event.retry) for event in events)


def _normalize_frame(frame: bytes) -> bytes:
    """Correct a frame so that sseclient-py parses it as the standard does; b"" without content."""
    if len(frame) > MAX_FRAME_BYTES or len(frame) * (frame.count(b"\n") + 1) > _MAX_FRAME_WORK:
        raise _too_large(frame)
    if b"\x00" in frame or b"retry" in frame:
        frame = _INVALID_FIELDS.sub(b"", frame)
    if _DATA.search(frame):
        return frame
    # A frame without data still sets the cursor and the delay; sseclient-py would drop it.
    rest = _ID_OR_RETRY.findall(frame)
    return b"\n".join([*rest, b"data"]) if rest else b""


def _too_large(frame: bytes | bytearray) -> FrameTooLarge:
    lines = frame.count(b"\n") + 1
    return FrameTooLarge(
        f"the event stream sent a frame of {len(frame):,} bytes in {lines:,} line(s), which is too large",
        remedy=CHECK_ADDRESS,
    )
