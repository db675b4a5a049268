"""Bytes of an event stream → whole server-sent frames.

A gate in front of sseclient-py: it hands on whole frames alone, and mends what sseclient-py would get wrong (a frame
cut off by the end, mixed line ends, a byte-order mark, invalid UTF-8, an id with NUL, a bare id). The rules are those
of the WHATWG HTML standard, section "Server-sent events". No I/O here; what a frame means is the business of
`connection.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from sseclient import SSEClient

from arkor.errors import ArkorError

#: The longest frame that is kept in memory, in bytes.
MAX_FRAME_BYTES = 16 * 1024 * 1024
#: sseclient-py joins the lines of a frame one by one; lines × bytes bounds that work to a fraction of a second.
_MAX_FRAME_WORK = 2**32

_BOM = b"\xef\xbb\xbf"
_DATA = re.compile(rb"^data(?::|$)", re.MULTILINE)
_ID_OR_RETRY = re.compile(rb"^(?:id|retry)(?::.*)?$", re.MULTILINE)
_TO_IGNORE = re.compile(rb"^(?:id:.*\x00.*|retry(?!: ?[0-9]+$).*)\n?", re.MULTILINE)


class FrameTooLarge(ArkorError):
    """A server-sent frame grew beyond what is kept in memory."""


class Frame(Protocol):
    """One whole frame: `id` is None where the frame has none, `retry` is a string of digits (milliseconds)."""

    id: str | None
    event: str
    data: str
    retry: str | None


def frames(chunks: Iterable[bytes]) -> Iterator[Frame]:
    """The frames of a stream, each as soon as its last byte has come, however the bytes are split.

    What the end cuts off is never returned. Raises `FrameTooLarge`, and whatever `chunks` raises.
    """
    parsed: Any = _Parser(_normalize_frames(_split_blocks(_normalize_newlines(_strip_bom(chunks))))).events()
    return iter(parsed)


class _Parser(SSEClient):
    """What comes in are whole frames one by one: their ends need not be looked for once more."""

    def __init__(self, whole: Iterator[bytes]) -> None:
        super().__init__(whole)
        self._whole = whole

    def _read(self) -> Iterator[bytes]:
        return self._whole


def _strip_bom(chunks: Iterable[bytes]) -> Iterator[bytes]:
    start, rest = b"", iter(chunks)
    for chunk in rest:
        start += chunk
        if len(start) >= len(_BOM) or not _BOM.startswith(start):
            yield start.removeprefix(_BOM)
            break
    yield from rest


def _normalize_newlines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """CRLF and CR become LF, also where a chunk ends between the two."""
    swallow_lf = False
    for chunk in chunks:
        if swallow_lf and chunk:
            chunk, swallow_lf = chunk.removeprefix(b"\n"), False  # noqa: PLW2901 - the rest of it
        if b"\r" in chunk:
            swallow_lf = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")  # noqa: PLW2901 - the same, mended
        yield chunk


def _split_blocks(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Blocks of one or more whole frames."""
    pending = bytearray()
    for chunk in chunks:
        if not pending and chunk.endswith(b"\n\n"):
            yield chunk
            continue
        searched = max(0, len(pending) - 1)
        pending += chunk
        end = pending.rfind(b"\n\n", searched) + 2
        if end > 1:
            block = bytes(pending[:end])
            del pending[:end]
            yield block
        if len(pending) > MAX_FRAME_BYTES:
            raise _too_large(pending)


def _normalize_frames(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Frame by frame, each such that sseclient-py reads in it what the standard does."""
    for block in blocks:
        try:
            block.decode()
        except UnicodeDecodeError:  # replaced by U+FFFD, as the standard's decoder does
            block = block.decode("utf-8", "replace").encode()  # noqa: PLW2901 - the same, mended
        # What a backend sends is nearly always plain, so that is found out quickly.
        is_plain = _fits_limit(block) and b"\x00" not in block and b"retry" not in block
        for frame in block[:-2].split(b"\n\n"):
            yield (frame if is_plain and b"\ndata:" in frame else _normalize_frame(frame)) + b"\n\n"


def _normalize_frame(frame: bytes) -> bytes:
    if not _fits_limit(frame):
        raise _too_large(frame)
    if b"\x00" in frame or b"retry" in frame:
        frame = _TO_IGNORE.sub(b"", frame)
    if _DATA.search(frame):
        return frame
    # Without data it is no event, but it still moves the cursor and sets the delay, which sseclient-py forgets.
    rest = _ID_OR_RETRY.findall(frame)
    return b"\n".join([*rest, b"data"]) if rest else b""


def _fits_limit(block: bytes) -> bool:
    """Whether no frame in it can be too large."""
    return len(block) <= MAX_FRAME_BYTES and len(block) * (block.count(b"\n") + 1) <= _MAX_FRAME_WORK


def _too_large(frame: bytes | bytearray) -> FrameTooLarge:
    lines = frame.count(b"\n") + 1
    return FrameTooLarge(
        f"the event stream sent one frame of {len(frame):,} bytes in {lines:,} line(s), which is more "
        "than is kept in memory; is this really the address of an Arkor backend?"
    )
