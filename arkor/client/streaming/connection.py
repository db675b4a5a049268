"""One connection to an event stream, read on a thread of its own into a bounded inbox."""

from __future__ import annotations

import json
import logging
import math
import queue
import threading
import time
from collections.abc import Callable
from http.client import HTTPException
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import requests
from urllib3.exceptions import HTTPError

from arkor.client.http.cancellation import Cancelled, CancelScope
from arkor.client.http.deadline import CANCEL_GRACE_SECONDS
from arkor.client.streaming.sse import Frame, FrameParser
from arkor.errors import ArkorError
from arkor.protocol.events import Event, TrainingLog, decode_event

logger = logging.getLogger("arkor")

#: Opens the stream after a cursor (None: from the start); raises `CloudApiError`.
Opener = Callable[[str | None], requests.Response]

_CHUNK_BYTES = 64 * 1024
#: Inbox sizes above and below which reading pauses and resumes; the overhead of a frame.
_HIGH_WATER_BYTES, _LOW_WATER_BYTES, _FRAME_OVERHEAD_BYTES = 1024 * 1024, 256 * 1024, 128
_BATCH_BYTES = 64 * 1024
_MAX_RETRY_AFTER = 86_400.0  # seconds; the policy's cap is usually far below
_DEFAULT_SILENCE_SECONDS = 60.0
_MISSED_PINGS = 3
_MIN_PING_INTERVAL = 0.25  # seconds; the pings of a busy server may be late


class StreamFault(ArkorError):
    """The stream failed in a way that reconnecting may fix."""


class StreamEnd:
    """The server sent `end`: the stream is complete."""


END = StreamEnd()


class Received(msgspec.Struct, gc=False):
    """A frame; without an `event` it is skipped; `progress` is False if it was malformed."""

    event: Event | StreamEnd | None
    id: str | None
    data: str
    progress: bool = True


class Batch(NamedTuple):
    """Frames that arrived together, and the bytes that they count for."""

    items: list[Received]
    size: float


class StreamConnection:
    """One event stream. `retry_seconds` is the reconnect delay that the server asked for."""

    def __init__(self, opener: Opener, cursor: str | None) -> None:
        self.retry_seconds: float | None = None
        self._inbox: queue.SimpleQueue[Batch | BaseException] = queue.SimpleQueue()
        # Both only grow; the reader's thread writes the first, the caller's thread the second.
        self._bytes_in = self._bytes_out = 0.0
        self._parser = FrameParser()
        self._chunks: list[bytes] = []  # received, but not parsed
        self._chunks_bytes = 0
        self._has_capacity = threading.Event()
        self._paused = False
        self._cancel_scope = CancelScope()
        self._keep_alive = KeepAlive()
        self._thread = threading.Thread(target=self._run, args=(opener, cursor), name="arkor-events", daemon=True)

    def __enter__(self) -> StreamConnection:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Interrupt the reader, and wait for it unless it is resolving a host name."""
        self._cancel_scope.cancel()
        self._bytes_out = -math.inf  # no capacity from now on
        self._has_capacity.set()
        self._thread.join(CANCEL_GRACE_SECONDS)

    def receive(self, seconds: float = 0.0) -> list[Received] | None:
        """Return the next frames, None if none arrives in time.

        Raise EOFError at the end, the error that ended the connection, or `StreamFault` after too
        long a silence.
        """
        try:
            batch = self._inbox.get(timeout=seconds) if seconds else self._inbox.get_nowait()
        except queue.Empty:
            if seconds:  # without a wait, the reader may not have run yet
                self._keep_alive.raise_if_silent()
            return None
        if isinstance(batch, BaseException):
            raise batch
        self._bytes_out += batch.size
        if self._paused and self._bytes_in - self._bytes_out < _LOW_WATER_BYTES:
            self._has_capacity.set()
        return batch.items

    # On the reader's thread

    def _run(self, opener: Opener, cursor: str | None) -> None:
        try:
            with self._cancel_scope:
                response = opener(cursor)
            with response:
                self._read(response)
            self._inbox.put(EOFError())
        except Cancelled:
            logger.debug("the event stream was closed")
        except (OSError, HTTPException, HTTPError) as error:
            cause = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            self._inbox.put(StreamFault(f"the connection to the event stream failed ({cause})"))
        except Exception as error:  # noqa: BLE001 - raised on the caller's thread
            self._inbox.put(error)

    def _read(self, response: requests.Response) -> None:
        media_type = response.headers.get("Content-Type", "")
        if media_type.split(";")[0].strip().lower() != "text/event-stream":
            received = f"status {response.status_code} with {media_type or 'no content type'}"
            raise StreamFault(f"expected an event stream, but received {received}")
        receiver = getattr(getattr(response.raw, "_original_response", None), "receiver", None)
        batch_bytes = 0
        if receiver is not None:  # a response of `protocol/transport.py`
            receiver.before_receive = self._deliver
            batch_bytes = _BATCH_BYTES
        try:
            self._receive_chunks(_low_latency_reader(response), batch_bytes)
        finally:
            self._deliver()

    def _receive_chunks(self, read: Callable[[], bytes], batch_bytes: int) -> None:
        """Receive to the end, and deliver at the latest after `batch_bytes`."""
        keep_alive = self._keep_alive
        keep_alive.last_received_at = time.monotonic()
        while chunk := read():
            keep_alive.last_received_at = time.monotonic()
            self._chunks.append(chunk)
            self._chunks_bytes += len(chunk)
            if self._chunks_bytes > batch_bytes:
                self._deliver()
            if self._bytes_in - self._bytes_out > _HIGH_WATER_BYTES:
                self._wait_for_capacity()

    def _deliver(self) -> None:
        """Parse what has arrived for the caller: before the thread waits for more, or if it is much."""
        if not self._chunks:
            return
        data, bytes_before = b"".join(self._chunks), self._bytes_in
        self._chunks.clear()
        self._chunks_bytes = 0
        batch: list[Received] = []
        try:
            for frame in self._parser.feed(data):
                if frame.retry is not None:
                    self.retry_seconds = min(float(frame.retry[:400]) / 1000, _MAX_RETRY_AFTER)
                if frame.event == "ping":
                    self._keep_alive.ping(self._bytes_in)
                    continue
                self._bytes_in += len(frame.data) + _FRAME_OVERHEAD_BYTES
                batch.append(_decode(frame))
        finally:  # also the frames before a faulty one
            if batch:
                self._inbox.put(Batch(batch, self._bytes_in - bytes_before))

    def _wait_for_capacity(self) -> None:
        """Pause reading, and thereby the server, until the caller catches up, or raise."""
        self._deliver()
        self._keep_alive.stop()
        self._paused = True
        while self._bytes_in - self._bytes_out > _LOW_WATER_BYTES:
            self._cancel_scope.raise_if_cancelled()
            self._has_capacity.wait(0.1)
            self._has_capacity.clear()
        self._paused = False
        self._keep_alive.last_received_at = time.monotonic()


class KeepAlive:
    """Detects a silent connection; `last_received_at` is None while nothing is read."""

    def __init__(self) -> None:
        self.last_received_at: float | None = None
        self._pinged_at: float | None = None
        self._interval: float | None = None
        self._bytes_at_ping = 0.0

    def raise_if_silent(self) -> None:
        """Raise `StreamFault` after too long a silence; thread-safe."""
        last_received_at = self.last_received_at
        limit = _DEFAULT_SILENCE_SECONDS if self._interval is None else _MISSED_PINGS * self._interval
        if last_received_at is not None and time.monotonic() - last_received_at > limit:
            raise StreamFault(f"the event stream was silent for {limit:.1f} s")

    def stop(self) -> None:
        """Ignore silence until `last_received_at` is set again."""
        self.last_received_at = self._pinged_at = None

    def ping(self, event_bytes: float) -> None:
        """Measure the ping interval, unless events or the same chunk distort it."""
        if self._pinged_at is not None and self.last_received_at is not None and self._bytes_at_ping == event_bytes:
            interval = self.last_received_at - self._pinged_at
            if interval > 0:
                self._interval = max(interval, self._interval or _MIN_PING_INTERVAL)
        self._pinged_at, self._bytes_at_ping = self.last_received_at, event_bytes


def _low_latency_reader(response: requests.Response) -> Callable[[], bytes]:
    """Return a function that reads available bytes without waiting for more; b"" at the end.

    Uncompressed responses use `read1` of the standard library, which is three times as fast as
    urllib3's.
    """
    raw = response.raw
    plain = getattr(raw, "_original_response", None)
    if plain is None or response.headers.get("Content-Encoding"):
        return lambda: raw.read1(_CHUNK_BYTES, decode_content=True)
    return lambda: plain.read1(_CHUNK_BYTES)


class _LogData(msgspec.Struct, rename="camel", gc=False):
    """The JSON of a `training.log` in its usual form; `decode_event` accepts others."""

    type: Literal["training.log"]
    job_id: str
    timestamp: str
    step: Annotated[int, msgspec.Meta(ge=0)]
    loss: float | None = None
    eval_loss: float | None = None
    learning_rate: float | None = None
    epoch: float | None = None
    samples_per_second: float | None = None
    non_finite: None = None


_decode_log = msgspec.json.Decoder(_LogData).decode
_decode_any = msgspec.json.Decoder().decode


def _decode(frame: Frame) -> Received:
    if frame.event == "end":
        return Received(END, frame.id, frame.data)
    try:
        event = _event(frame)
    except (ValueError, RecursionError) as error:
        logger.debug("skipped a malformed frame: %s", error)
        return Received(None, frame.id, frame.data, progress=False)
    if event is None:
        logger.debug("skipped an event of an unknown type")
    return Received(event, frame.id, frame.data)


def _event(frame: Frame) -> Event | None:
    """Decode the event of a frame as `decode_event` does, logs of the usual form three times as fast."""
    if frame.event == "training.log":
        try:
            log = _decode_log(frame.data)
        except (ValueError, RecursionError):
            pass
        else:
            return TrainingLog(
                log.job_id, log.timestamp, log.step,
                log.loss, log.eval_loss, log.learning_rate, log.epoch, log.samples_per_second,
            )  # fmt: skip
    data = _json(frame.data)
    if isinstance(data, dict):
        data.setdefault("type", frame.event)
    return decode_event(data)


def _json(text: str) -> Any:
    """Parse with msgspec, five times as fast as `json.loads`; that parses NaN and Infinity."""
    try:
        return _decode_any(text)
    except ValueError:
        return json.loads(text)
