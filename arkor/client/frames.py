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
#: Whatever its lines, a frame of so many bytes is within that bound.
_SMALL = 2**16

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


def frames(chunks: Iterable[bytes]) -> Iterator[Frame]:
    """The frames of a stream, each as soon as its last byte has come, however the bytes are split.

    What the end cuts off is never returned. Raises `FrameTooLarge`, and whatever `chunks` raises.
    """
    parsed: Any = SSEClient(_mended(_whole(_unified(_without_bom(chunks))))).events()
    return iter(parsed)


def _without_bom(chunks: Iterable[bytes]) -> Iterator[bytes]:
    start, rest = b"", iter(chunks)
    for chunk in rest:
        start += chunk
        if len(start) >= len(_BOM) or not _BOM.startswith(start):
            yield start.removeprefix(_BOM)
            break
    yield from rest


def _unified(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """CRLF and CR become LF, also where a chunk ends between the two."""
    swallow_lf = False
    for chunk in chunks:
        if swallow_lf and chunk:
            chunk, swallow_lf = chunk.removeprefix(b"\n"), False  # noqa: PLW2901 - the rest of it
        if b"\r" in chunk:
            swallow_lf = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")  # noqa: PLW2901 - the same, mended
        yield chunk


def _whole(chunks: Iterable[bytes]) -> Iterator[bytes]:
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
        _check_size(len(pending), 1)


def _mended(blocks: Iterable[bytes]) -> Iterator[bytes]:
    for block in blocks:
        try:
            block.decode()
        except UnicodeDecodeError:  # replaced by U+FFFD, as the standard's decoder does
            block = block.decode("utf-8", "replace").encode()  # noqa: PLW2901 - the same, mended
        if _is_plain(block):
            yield block
        else:
            yield from (_mend(frame) for part in block.split(b"\n\n") if (frame := part.strip(b"\n")))


def _is_plain(block: bytes) -> bool:
    """Whether sseclient-py understands all of it: what a backend sends nearly always, so it is looked at quickly."""
    if len(block) > _SMALL or b"\x00" in block or b"retry" in block:
        return False
    if block.find(b"\n\n") == len(block) - 2:
        return b"\ndata:" in block
    return all(b"\ndata:" in frame for frame in block[:-2].split(b"\n\n"))


def _mend(frame: bytes) -> bytes:
    _check_size(len(frame), frame.count(b"\n") + 1)
    if b"\x00" in frame:
        frame = _ID_WITH_NUL.sub(b"", frame)
    if b"retry" in frame:
        frame = _BAD_RETRY.sub(b"", frame)
    if not _HAS_DATA.search(frame):
        frame += b"\ndata"  # sseclient-py forgets the id and the retry of a frame without data
    return frame + b"\n\n"


def _check_size(size: int, lines: int) -> None:
    if size > MAX_FRAME_BYTES or lines * size > _MAX_FRAME_WORK:
        raise FrameTooLarge(f"the event stream sent one frame of {size:,} bytes in {lines:,} lines")
