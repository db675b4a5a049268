"""The event stream of a run: each event once, in order, across reconnections.

The caller's thread takes the frames of a `StreamConnection`, keeps the cursor, decides what a
failure means, and waits. `ReplayGuard` recognizes events that were delivered before, so a server
may replay too much. Event ids are opaque and distinct; each one seen takes eight bytes of memory.
"""

from __future__ import annotations

import logging
import math
from array import array
from bisect import bisect_left
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from typing import Any

from attrs import define, field
from tenacity import RetryCallState, RetryError, stop_after_attempt, stop_never

from arkor.client.http.deadline import Deadline
from arkor.client.streaming.connection import Opener, Received, StreamConnection, StreamEnd, StreamFault
from arkor.client.streaming.reconnect_policy import MIN_RETRY_AFTER, ReconnectPolicy
from arkor.errors import BackendUnavailable, CloudApiError, StreamLost
from arkor.protocol.events import Event
from arkor.protocol.retry import retrying

logger = logging.getLogger("arkor")

_FINAL_STATUSES = frozenset({401, 403, 410, 426})

#: A number of at most 18 digits fits into eight bytes and is kept unchanged, so that rising ids
#: need no sorting. Other ids are kept as their hash.
_MAX_DIGITS = 18


class ReplayGuard:
    """The events of this connection and of earlier ones, by id, or by data if they have no id."""

    def __init__(self) -> None:
        self._earlier = array("q")  # sorted
        self._current = array("q")
        self._ascending = True  # whether `_current` is sorted
        self._highest = -math.inf  # of all keys; a higher one is new
        self._last: tuple[str | None, str] | None = None

    def connected(self) -> None:
        """Start a new connection, on which every event seen so far is a replay."""
        follows = not self._earlier or not self._current or self._earlier[-1] < self._current[0]
        self._earlier.extend(self._current)
        if not (self._ascending and follows):
            self._earlier = array("q", sorted(self._earlier))
        self._current, self._ascending, self._last = array("q"), True, None

    def is_replay(self, event_id: str | None, data: str) -> bool:
        """Return whether this event was seen before; if not, remember it.

        Within one connection, a repeated id is a replay only if the data is the same as well, as
        far as it is known: a new event must not get lost because a server used an id twice.
        """
        key = _key(event_id, data)
        if key <= self._highest:
            if self._earlier and _contains(self._earlier, key):
                return True
            if self._current and key <= self._current[-1]:
                if key == self._current[-1]:
                    return self._last == (event_id, data)
                if self._ascending and event_id and _contains(self._current, key):
                    return True
                self._ascending = False
        else:
            self._highest = key
        self._current.append(key)
        self._last = (event_id, data)
        return False


def _key(event_id: str | None, data: str) -> int:
    if event_id and len(event_id) <= _MAX_DIGITS and event_id.isdecimal() and event_id.isascii():
        return int(event_id)
    return hash(event_id or data)


def _contains(keys: Sequence[int], key: int) -> bool:
    index = bisect_left(keys, key)
    return index < len(keys) and keys[index] == key


@define(eq=False)
class EventStream:
    """The events of one run after `cursor`, the id of the last event that was yielded."""

    opener: Opener
    policy: ReconnectPolicy
    cursor: str | None = None
    _guard: ReplayGuard = field(factory=ReplayGuard)
    _base_delay: float | None = None
    _fault: Exception | None = None

    def reconnect(self, fault: Exception) -> None:
        """Reconnect after the last event, as if the connection had failed with that error."""
        self._fault = fault

    def events(self, deadline: Deadline) -> Generator[Event | StreamEnd, None, None]:
        """Yield events until the server sends `end`, which yields `END`, reconnecting as needed.

        Raise `CloudApiError` for a status that retrying cannot change, `StreamLost` when the
        policy's attempts are used up, and whatever `deadline` raises.
        """
        self._fault = None
        while True:
            yield from self._connections(deadline)
            delay = self.policy.delay(1, self._base_delay)
            logger.info("the event stream ended before the run did; reconnecting in %.1f s", delay)
            deadline.sleep(delay)

    def _connections(self, deadline: Deadline) -> Iterator[Any]:
        """Connect until a connection that made progress ends cleanly."""
        limit = self.policy.max_attempts
        stop = stop_never if limit is None else stop_after_attempt(limit + 1)
        attempts = retrying(_is_transient, self._delay, stop, sleep=deadline.sleep, log=_log_reconnect, reraise=False)
        try:
            for attempt in attempts:
                with attempt:
                    yield from self._one_connection(deadline, attempt.retry_state)
        except RetryError as error:
            failures = error.last_attempt.attempt_number
            cause = error.last_attempt.exception()
            raise StreamLost(f"the event stream failed {failures} times in a row; the last time: {cause}") from cause

    def _delay(self, error: BaseException, failures: int) -> float:
        """Return the `retry_after` of an error, up to the policy's cap, or the policy's delay."""
        retry_after = getattr(error, "retry_after", None)
        if retry_after:
            return float(min(max(retry_after, MIN_RETRY_AFTER), self.policy.max_delay))
        return self.policy.delay(failures, self._base_delay)

    def _one_connection(self, deadline: Deadline, failures: RetryCallState) -> Iterator[Any]:
        deadline.raise_if_expired()
        self._guard.connected()
        received_any = False
        with StreamConnection(self.opener, self.cursor) as connection:
            for item in _received(connection, deadline):
                if item.progress and not received_any:
                    received_any = True
                    failures.attempt_number = 1  # the next failure is the first one in a row
                self._base_delay = connection.retry_seconds
                if self._advance(item):
                    yield item.event
                    if (fault := self._fault) is not None:
                        self._fault = None
                        raise fault
                    deadline.raise_if_expired()
        if not received_any:
            raise StreamFault("the event stream ended without a single event")

    def _advance(self, item: Received) -> bool:
        """Move the cursor; return whether the event is neither malformed nor a replay."""
        if (item.id or item.event is not None) and self._guard.is_replay(item.id, item.data):
            return False
        if item.id is not None:
            self.cursor = item.id or None
        return item.event is not None


def _received(connection: StreamConnection, deadline: Deadline) -> Iterator[Received]:
    with suppress(EOFError):
        while True:
            yield from connection.receive() or deadline.poll(connection.receive)


def _log_reconnect(error: BaseException, seconds: float) -> None:
    logger.warning("%s; reconnecting in %.1f s", str(error) or type(error).__name__, seconds)


def _is_transient(error: BaseException) -> bool:
    """Return whether reconnecting may help: network failures and most error statuses."""
    if isinstance(error, CloudApiError):
        return error.status not in _FINAL_STATUSES
    return isinstance(error, (StreamFault, BackendUnavailable))
