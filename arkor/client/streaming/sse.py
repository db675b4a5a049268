"""Parse server-sent events: chunks of bytes into whole frames.

The chunks are normalized before sseclient-py parses them, because it deviates from the WHATWG HTML
standard (section "Server-sent events") for incomplete frames, mixed line ends, a byte-order mark,
invalid UTF-8, ids with NUL, and frames of only an id.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from sseclient import SSEClient

from arkor.client.http.errors import CHECK_ADDRESS
from arkor.errors import ArkorError

#: The longest frame that is accepted, in bytes.
MAX_FRAME_BYTES = 16 * 1024 * 1024
#: sseclient-py joins lines one by one; a limit on lines × bytes keeps that below a second.
_MAX_FRAME_WORK = 2**32

_BOM = b"\xef\xbb\xbf"
_DATA = re.compile(rb"^data(?::|$)", re.MULTILINE)
_ID_OR_RETRY = re.compile(rb"^(?:id|retry)(?::.*)?$", re.MULTILINE)
_INVALID_FIELDS = re.compile(rb"^(?:id:.*\x00.*|retry(?!: ?[0-9]+$).*)\n?", re.MULTILINE)


class FrameTooLarge(ArkorError):
    """A server-sent frame is longer than the limit."""


class Frame(Protocol):
    """One frame: `id` is None if not set, `retry` is a string of digits (milliseconds)."""

    id: str | None
    event: str
    data: str
    retry: str | None


def frames(chunks: Iterable[bytes]) -> Iterator[Frame]:
    """Yield the whole frames of a stream, each as soon as its last byte has arrived."""
    parsed: Any = _Parser(_normalize_frames(_split_blocks(_normalize_newlines(_strip_bom(chunks))))).events()
    return iter(parsed)


class _Parser(SSEClient):
    """Takes whole frames, so it does not search for their ends again."""

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
    """Replace CRLF and CR by LF, also if a chunk ends between CR and LF."""
    skip_lf = False
    for chunk in chunks:
        if skip_lf and chunk:
            chunk, skip_lf = chunk.removeprefix(b"\n"), False  # noqa: PLW2901
        if b"\r" in chunk:
            skip_lf = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")  # noqa: PLW2901
        yield chunk


def _split_blocks(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Regroup chunks into blocks of one or more whole frames."""
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
    """Split blocks into frames that sseclient-py parses as the standard does."""
    for block in blocks:
        try:
            block.decode()
        except UnicodeDecodeError:  # replaced by U+FFFD, as in the standard
            block = block.decode("utf-8", "replace").encode()  # noqa: PLW2901
        # Nearly all frames of a backend are plain, so this check is a fast path.
        is_plain = _fits_limit(block) and b"\x00" not in block and b"retry" not in block
        for frame in block[:-2].split(b"\n\n"):
            yield (frame if is_plain and b"\ndata:" in frame else _normalize_frame(frame)) + b"\n\n"


def _normalize_frame(frame: bytes) -> bytes:
    if not _fits_limit(frame):
        raise _too_large(frame)
    if b"\x00" in frame or b"retry" in frame:
        frame = _INVALID_FIELDS.sub(b"", frame)
    if _DATA.search(frame):
        return frame
    # A frame without data still sets the cursor and the delay; sseclient-py would drop it.
    rest = _ID_OR_RETRY.findall(frame)
    return b"\n".join([*rest, b"data"]) if rest else b""


def _fits_limit(block: bytes) -> bool:
    """Return whether no frame of the block can be too large."""
    return len(block) <= MAX_FRAME_BYTES and len(block) * (block.count(b"\n") + 1) <= _MAX_FRAME_WORK


def _too_large(frame: bytes | bytearray) -> FrameTooLarge:
    lines = frame.count(b"\n") + 1
    return FrameTooLarge(
        f"the event stream sent a frame of {len(frame):,} bytes in {lines:,} line(s), which is too large",
        remedy=CHECK_ADDRESS,
    )
