"""The event pump: one run's events, in order, each exactly once, whatever the network does.

A reader thread lives for one connection: it opens the stream, decodes, and puts batches on a bounded queue. The
caller's thread takes them off, keeps the cursor, decides what a fault means, and does all the waiting. What an
event does is the business of `trainer.py`.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from http.client import HTTPException
from typing import Any

import requests
from attrs import define, field, frozen
from tenacity import RetryCallState, RetryError
from urllib3.exceptions import HTTPError

from arkor.client.frames import Frame, FrameDecoder
from arkor.client.retry import Patience, ReconnectPolicy, reconnecting
from arkor.errors import ArkorError, BackendUnavailable, CloudApiError, StreamLost
from arkor.events import Event, MalformedEvent, decode_event

logger = logging.getLogger("arkor")

#: Opens the stream behind a cursor (None: from the start); raises `CloudApiError` for an error status.
Opener = Callable[[str | None], requests.Response]

_FINAL_STATUSES = frozenset({401, 403, 410, 426})
_CHUNK_BYTES = 64 * 1024
_QUEUED_BATCHES = 16
_SILENCE_BEFORE_FIRST_PING = 60.0  # seconds
_MISSED_PINGS = 3
_JOIN_SECONDS = 0.05  # a reader that still waits for a connection ends by itself, with its time-out


class StreamFault(ArkorError):
    """The stream broke in a way that reconnecting may mend."""


class StreamEnd:
    """The server said `end`: the stream is over for good."""


END = StreamEnd()


@frozen
class Numbered:
    """An event and the id that it came with; `event` is None for what was skipped for cause."""

    event: Event | StreamEnd | None
    id: str | None
    progress: bool = True


class Connection:
    """One open event stream, read on a thread of its own."""

    def __init__(self, opener: Opener, cursor: str | None) -> None:
        self._batches: queue.Queue[list[Numbered] | BaseException] = queue.Queue(_QUEUED_BATCHES)
        self._closed = threading.Event()
        self._response: requests.Response | None = None
        self._lock = threading.Lock()
        self.heard_at = time.monotonic()
        self.pinged_at: float | None = None
        self.ping_interval: float | None = None
        self.retry_seconds: float | None = None
        self._thread = threading.Thread(target=self._run, args=(opener, cursor), name="arkor-events", daemon=True)
        self._thread.start()

    def take(self, seconds: float) -> list[Numbered] | None:
        """The next batch; [] once the stream is exhausted, None when nothing came in time; raises its fault."""
        try:
            batch = self._batches.get(timeout=seconds)
        except queue.Empty:
            self._check_silence()
            return None
        if isinstance(batch, BaseException):
            raise batch
        return batch

    def close(self) -> None:
        """Wake the reader wherever it is, and wait for it to be gone."""
        self._closed.set()
        with self._lock:
            response = self._response
        if response is not None:
            _shut_down(response)
        self._thread.join(timeout=_JOIN_SECONDS)

    def _check_silence(self) -> None:
        limit = _SILENCE_BEFORE_FIRST_PING if self.ping_interval is None else _MISSED_PINGS * self.ping_interval
        if self._response is not None and self._batches.empty() and time.monotonic() - self.heard_at > limit:
            raise StreamFault(f"nothing was heard from the event stream for {limit:.0f} s")

    # On the reader's thread

    def _run(self, opener: Opener, cursor: str | None) -> None:
        try:
            response = opener(cursor)
            with self._lock:
                self._response = response
            with response:
                self._read(response)
            self._put([])
        except (OSError, HTTPException, HTTPError) as error:
            self._put(StreamFault(f"the connection to the event stream broke ({_reason(error)})"))
        except Exception as error:  # noqa: BLE001 - handed to the caller's thread, which knows what it means
            self._put(error)

    def _read(self, response: requests.Response) -> None:
        kind = response.headers.get("Content-Type", "")
        if kind.split(";")[0].strip().lower() != "text/event-stream":
            raise StreamFault(f"expected an event stream, but {response.status_code} {kind or 'without a type'} came")
        decoder = FrameDecoder()
        self.heard_at = time.monotonic()
        while not self._closed.is_set():
            chunk = response.raw.read1(_CHUNK_BYTES, decode_content=True)
            if not chunk:
                return
            self.heard_at = time.monotonic()
            if frames := decoder.feed(chunk):
                self._put([self._decode(frame) for frame in frames])

    def _decode(self, frame: Frame) -> Numbered:
        if frame.retry is not None:
            self.retry_seconds = float(frame.retry[:9]) / 1000
        if frame.event == "ping":
            self._learn_ping()
            return Numbered(None, None, progress=False)
        if frame.event == "end":
            return Numbered(END, frame.id)
        try:
            return Numbered(_event(frame), frame.id)
        except (ValueError, RecursionError) as error:
            logger.debug("skipped a malformed frame: %s", error)
            return Numbered(None, frame.id, progress=False)

    def _learn_ping(self) -> None:
        if self.pinged_at is not None:
            self.ping_interval = max(self.heard_at - self.pinged_at, self.ping_interval or 0.25)
        self.pinged_at = self.heard_at

    def _put(self, item: list[Numbered] | BaseException) -> None:
        """Wait for room, as long as there is somebody to take it."""
        delivered = False
        while not delivered and not self._closed.is_set():
            with suppress(queue.Full):
                self._batches.put(item, timeout=0.1)
                delivered = True


def _event(frame: Frame) -> Event | None:
    data = json.loads(frame.data)
    if not isinstance(data, dict):
        raise MalformedEvent(f"expected an object, not {type(data).__name__}")
    data.setdefault("type", frame.event)
    event = decode_event(data)
    if event is None:
        logger.debug("skipped an event of an unknown type")
    return event


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _shut_down(response: requests.Response) -> None:
    """Wake a reader that is blocked in a read; closing alone would not."""
    try:
        response.raw.shutdown()
    except (RuntimeError, OSError, ValueError, AttributeError):
        logger.debug("the event stream had already ended")


class ReplayGuard:
    """Which ids were handed on over earlier connections; a server that replays too much is tolerated.

    Ids that are rising numbers, as most backends' are, cost one integer; others are kept in a set.
    """

    def __init__(self) -> None:
        self._ceiling = -1
        self._highest = -1
        self._earlier: set[str] = set()
        self._current: set[str] = set()

    def connected(self) -> None:
        """A new connection begins: from here, what came before counts as a replay."""
        self._ceiling = self._highest
        self._earlier |= self._current
        self._current.clear()

    def is_replay(self, event_id: str) -> bool:
        if event_id in self._earlier:
            return True
        number = _number(event_id)
        if number is None:
            self._current.add(event_id)
            return False
        if number <= self._ceiling:
            return True
        self._highest = max(self._highest, number)
        return False


def _number(event_id: str) -> int | None:
    return int(event_id) if event_id.isascii() and event_id.isdigit() and len(event_id) <= 19 else None


@define(eq=False)
class EventStream:
    """The events of one run behind `cursor`, the id of the last one that was handed on."""

    opener: Opener
    policy: ReconnectPolicy
    cursor: str | None = None
    _guard: ReplayGuard = field(factory=ReplayGuard)
    _base_delay: float | None = None

    def events(self, patience: Patience) -> Generator[Event | StreamEnd, None, None]:
        """Yield events until `END`; throw a `StreamFault` into it to reconnect behind the event that was last.

        Raises `CloudApiError` for an answer that retrying cannot change, `StreamLost` when the policy's attempts
        are used up, and whatever `patience` raises.
        """
        while True:
            yield from self._until_clean_end(patience)
            patience.pause(self.policy.delay(1, self._base_delay))

    def _until_clean_end(self, patience: Patience) -> Iterator[Any]:
        """Connections until one ends cleanly after it made progress; each fault before that counts."""
        attempts = reconnecting(self.policy, patience, is_transient, lambda: self._base_delay)
        try:
            for attempt in attempts:
                with attempt:
                    yield from self._one_connection(patience, attempt.retry_state)
        except RetryError as error:
            failures = error.last_attempt.attempt_number
            cause = error.last_attempt.exception()
            raise StreamLost(f"the event stream failed {failures} times in a row; the last time: {cause}") from cause

    def _one_connection(self, patience: Patience, failures: RetryCallState) -> Iterator[Any]:
        patience.check()
        self._guard.connected()
        connection = Connection(self.opener, self.cursor)
        heard = False
        try:
            while batch := patience.poll(connection.take):
                self._base_delay = connection.retry_seconds
                for item in batch:
                    if item.progress and not heard:
                        heard = True
                        failures.attempt_number = 1  # what breaks from here on is the first failure in a row
                    if self._moves_on(item):
                        yield item.event
                        patience.check()
        finally:
            connection.close()
        if not heard:
            raise StreamFault("the event stream ended without a single event")

    def _moves_on(self, item: Numbered) -> bool:
        """Move the cursor; False for what is not handed on: pings, garbage, replays."""
        if item.id:
            if self._guard.is_replay(item.id):
                return False
            self.cursor = item.id
        elif item.id == "":
            self.cursor = None
        return item.event is not None


def is_transient(error: BaseException) -> bool:
    """Whether trying again may help: faults of the network and most error statuses, never an abort."""
    if isinstance(error, CloudApiError):
        return error.status not in _FINAL_STATUSES
    return isinstance(error, (StreamFault, BackendUnavailable))
