"""Bytes of an event stream → whole server-sent frames.

A gate in front of sseclient-py: it cuts the stream into whole frames and mends what sseclient-py would get wrong
(a frame cut off by the end, mixed line ends, a byte-order mark, invalid UTF-8, an id with NUL, a bare id). The
rules are those of the WHATWG HTML standard, section "Server-sent events". No I/O here; what a frame means is the
business of `stream.py`.
"""

from __future__ import annotations

import re
from typing import Any, Protocol

from sseclient import SSEClient

from arkor.errors import ArkorError

#: The longest frame that is kept in memory, in bytes.
MAX_FRAME_BYTES = 16 * 1024 * 1024
#: sseclient-py joins the lines of a frame one by one; lines × bytes bounds that work to a fraction of a second.
_MAX_FRAME_WORK = 2**32

_BOM = b"\xef\xbb\xbf"
_HAS_DATA = re.compile(rb"(?:^|\n)data(?:[:\n]|$)")
_ID_WITH_NUL = re.compile(rb"^id:[^\n]*\x00[^\n]*\n?", re.MULTILINE)
_BAD_RETRY = re.compile(rb"^retry(?!: ?[0-9]+$)[^\n]*\n?", re.MULTILINE)


class FrameTooLarge(ArkorError):
    """A server-sent frame grew beyond what is kept in memory."""


class Frame(Protocol):
    """One whole frame: `id` is None where the frame has none, `retry` is a string of digits (milliseconds)."""

    id: str | None
    event: str
    data: str
    retry: str | None


class FrameDecoder:
    """Feed it the bytes as they come, in any split; each call returns the frames that became whole."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self._at_start = True
        self._swallow_lf = False

    def feed(self, chunk: bytes) -> list[Frame]:
        """Raises `FrameTooLarge`; what the end of the stream cuts off is never returned."""
        searched = max(0, len(self._pending) - 1)
        self._pending += self._normalise(chunk)
        if self._at_start and not self._skip_bom():
            return []
        end = self._pending.rfind(b"\n\n", searched)
        if end < 0:
            self._check_size(len(self._pending), 1)
            return []
        block = bytes(self._pending[: end + 2])
        del self._pending[: end + 2]
        return self._parse(block)

    def _normalise(self, chunk: bytes) -> bytes:
        """CRLF and CR become LF, also where a chunk ends between the two."""
        if self._swallow_lf and chunk:
            chunk = chunk[1:] if chunk[:1] == b"\n" else chunk
            self._swallow_lf = False
        if b"\r" not in chunk:
            return chunk
        self._swallow_lf = chunk.endswith(b"\r")
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _skip_bom(self) -> bool:
        """Drop one byte-order mark at the very start; False while it cannot be told yet."""
        if len(self._pending) < len(_BOM) and _BOM.startswith(self._pending):
            return False
        if self._pending.startswith(_BOM):
            del self._pending[: len(_BOM)]
        self._at_start = False
        return True

    def _parse(self, block: bytes) -> list[Frame]:
        frames = [self._mend(frame) for frame in _utf8(block).split(b"\n\n") if frame.strip(b"\n")]
        parsed: Any = SSEClient(iter(frames)).events()
        return list(parsed)

    def _mend(self, frame: bytes) -> bytes:
        self._check_size(len(frame), frame.count(b"\n") + 1)
        if b"\x00" in frame:
            frame = _ID_WITH_NUL.sub(b"", frame)
        if b"retry" in frame:
            frame = _BAD_RETRY.sub(b"", frame)
        if not _HAS_DATA.search(frame):
            frame += b"\ndata"  # sseclient-py forgets the id and the retry of a frame without data
        return frame + b"\n\n"

    def _check_size(self, size: int, lines: int) -> None:
        if size > MAX_FRAME_BYTES or lines * size > _MAX_FRAME_WORK:
            self._pending.clear()
            raise FrameTooLarge(f"the event stream sent one frame of {size:,} bytes in {lines:,} lines")


def _utf8(block: bytes) -> bytes:
    """Invalid UTF-8 replaced by U+FFFD, as the standard's decoder does."""
    try:
        block.decode("utf-8")
    except UnicodeDecodeError:
        return block.decode("utf-8", "replace").encode("utf-8")
    return block
