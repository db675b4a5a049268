"""One connection to an event stream, read on a thread of its own.

Opens the stream, decodes it, and puts what it says into a bounded inbox for the caller's thread. What a fault means,
and where to go on after it, is the business of `event_stream.py`.
"""

from __future__ import annotations

import json
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPException
from typing import Any

import msgspec.json
import requests
from attrs import define
from urllib3.exceptions import HTTPError

from arkor.client.http.cancellation import Cancelled, CancelScope
from arkor.client.http.deadline import CANCEL_GRACE_SECONDS
from arkor.client.streaming.sse import Frame, frames
from arkor.errors import ArkorError
from arkor.protocol.events import Event, MalformedEvent, decode_event

logger = logging.getLogger("arkor")

#: Opens the stream behind a cursor (None: from the start); raises `CloudApiError` for an error status.
Opener = Callable[[str | None], requests.Response]

_fast_json = msgspec.json.Decoder().decode

_CHUNK_BYTES = 64 * 1024
#: The inbox is full with so much data in it, and has room again with so much; a frame counts as a bit more than it is.
_FULL_BYTES, _ROOM_BYTES, _FRAME_BYTES = 1024 * 1024, 256 * 1024, 128
_MAX_RETRY_AFTER = 86_400.0  # seconds; the policy's cap is usually far below
_DEFAULT_SILENCE_SECONDS = 60.0  # seconds
_MISSED_PINGS = 3
_MIN_PING_INTERVAL = 0.25  # seconds; a busy machine is not a dead one


class StreamFault(ArkorError):
    """The stream broke in a way that reconnecting may mend."""


class StreamEnd:
    """The server said `end`: the stream is over for good."""


END = StreamEnd()


@define(eq=False)
class Received:
    """A frame as it came: `event` is None for one that is skipped for cause; `progress` is False if it was no event."""

    event: Event | StreamEnd | None
    id: str | None
    data: str
    progress: bool = True


class StreamConnection:
    """One event stream from opening to closing. `retry_seconds` is what the server asked to wait after it."""

    def __init__(self, opener: Opener, cursor: str | None) -> None:
        self.retry_seconds: float | None = None
        self._inbox: queue.SimpleQueue[Received | BaseException] = queue.SimpleQueue()
        self._bytes_in = self._bytes_out = 0.0  # the one is the reader's to write, the other the caller's
        self._room = threading.Event()
        self._full = False
        self._cancel_scope = CancelScope()
        self._keep_alive = KeepAlive()
        self._thread = threading.Thread(target=self._run, args=(opener, cursor), name="arkor-events", daemon=True)

    def __enter__(self) -> StreamConnection:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Wake the reader wherever it is, and see it off."""
        self._cancel_scope.cancel()
        self._bytes_out = -math.inf  # no room any more
        self._room.set()
        self._thread.join(CANCEL_GRACE_SECONDS)

    def receive(self, seconds: float = 0.0) -> Received | None:
        """What comes next; None when nothing came in time.

        Raises EOFError at the end, or the fault that ended the connection, also when nothing was heard for too long.
        """
        try:
            item = self._inbox.get(timeout=seconds) if seconds else self._inbox.get_nowait()
        except queue.Empty:
            if seconds:  # the reader had its chance
                self._keep_alive.raise_if_silent()
            return None
        if isinstance(item, BaseException):
            raise item
        self._bytes_out += len(item.data) + _FRAME_BYTES
        if self._full and self._bytes_in - self._bytes_out < _ROOM_BYTES:
            self._room.set()
        return item

    # On the reader's thread

    def _run(self, opener: Opener, cursor: str | None) -> None:
        try:
            with self._cancel_scope:
                response = opener(cursor)
            with response:
                self._read(response)
            self._inbox.put(EOFError())
        except Cancelled:
            logger.debug("the event stream was left")
        except (OSError, HTTPException, HTTPError) as error:
            self._inbox.put(StreamFault(f"the connection to the event stream broke ({_reason(error)})"))
        except Exception as error:  # noqa: BLE001 - handed to the caller's thread, which knows what it means
            self._inbox.put(error)

    def _read(self, response: requests.Response) -> None:
        kind = response.headers.get("Content-Type", "")
        if kind.split(";")[0].strip().lower() != "text/event-stream":
            raise StreamFault(f"expected an event stream, but {response.status_code} {kind or 'without a type'} came")
        for frame in frames(self._chunks(response)):
            if frame.retry is not None:
                self.retry_seconds = min(float(frame.retry[:400]) / 1000, _MAX_RETRY_AFTER)
            if frame.event == "ping":
                self._keep_alive.ping(self._bytes_in)
                continue
            self._bytes_in += len(frame.data) + _FRAME_BYTES
            self._inbox.put(_decoded(frame))

    def _chunks(self, response: requests.Response) -> Iterator[bytes]:
        read, keep_alive = _low_latency_reader(response), self._keep_alive
        keep_alive.last_received_at = time.monotonic()
        while chunk := read():
            keep_alive.last_received_at = time.monotonic()
            yield chunk
            if self._bytes_in - self._bytes_out > _FULL_BYTES:
                self._wait_for_room()

    def _wait_for_room(self) -> None:
        """The caller is slow: let the network wait, too. Raises `Cancelled` when nobody takes anything any more."""
        self._keep_alive.stop()
        self._full = True
        while self._bytes_in - self._bytes_out > _ROOM_BYTES:
            self._cancel_scope.raise_if_cancelled()
            self._room.wait(0.1)
            self._room.clear()
        self._full = False
        self._keep_alive.last_received_at = time.monotonic()


class KeepAlive:
    """When something was heard last (`last_received_at`; None: nobody listens), and how long silence may last."""

    def __init__(self) -> None:
        self.last_received_at: float | None = None
        self._pinged_at: float | None = None
        self._interval: float | None = None
        self._events = 0.0  # how much of them there had been at the last ping

    def raise_if_silent(self) -> None:
        """Raises `StreamFault` after too long a silence. From any thread."""
        last_received_at = self.last_received_at
        limit = _DEFAULT_SILENCE_SECONDS if self._interval is None else _MISSED_PINGS * self._interval
        if last_received_at is not None and time.monotonic() - last_received_at > limit:
            raise StreamFault(f"nothing was heard from the event stream for {limit:.1f} s")

    def stop(self) -> None:
        """From here on, silence does not count."""
        self.last_received_at = self._pinged_at = None

    def ping(self, events_so_far: float) -> None:
        """Two pings with no event in between, and not from one chunk, show the interval."""
        if self._pinged_at is not None and self.last_received_at is not None and self._events == events_so_far:
            interval = self.last_received_at - self._pinged_at
            if interval > 0:
                self._interval = max(interval, self._interval or _MIN_PING_INTERVAL)
        self._pinged_at, self._events = self.last_received_at, events_so_far


def _low_latency_reader(response: requests.Response) -> Callable[[], bytes]:
    """Reads what is there, as soon as something is, whatever the framing; b"" at the end.

    Where nothing is to be decompressed, `read1` of the standard library is asked directly, which is three times as
    fast as urllib3's around it.
    """
    raw = response.raw
    plain = getattr(raw, "_original_response", None)
    if plain is None or response.headers.get("Content-Encoding"):
        return lambda: raw.read1(_CHUNK_BYTES, decode_content=True)
    return lambda: plain.read1(_CHUNK_BYTES)


def _decoded(frame: Frame) -> Received:
    if frame.event == "end":
        return Received(END, frame.id, frame.data)
    try:
        return Received(_event(frame), frame.id, frame.data)
    except (ValueError, RecursionError) as error:
        logger.debug("skipped a malformed frame: %s", error)
        return Received(None, frame.id, frame.data, progress=False)


def _event(frame: Frame) -> Event | None:
    data = _json(frame.data)
    if not isinstance(data, dict):
        raise MalformedEvent(f"expected an object, not {type(data).__name__}")
    data.setdefault("type", frame.event)
    event = decode_event(data)
    if event is None:
        logger.debug("skipped an event of an unknown type")
    return event


def _json(text: str) -> Any:
    """As `json.loads` reads it, in a fifth of the time; what is no strict JSON, `NaN` for one, is left to it."""
    try:
        return _fast_json(text)
    except ValueError:
        return json.loads(text)


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
