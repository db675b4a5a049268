"""The event stream of a run: each event once, in order, across reconnections.

The caller's thread takes what a `StreamConnection` has read, keeps the cursor, decides what a fault means, and waits.
`ReplayGuard` recognizes events that were delivered before, so that a server may replay too much. Event ids are opaque;
the only assumption is that different events have different ids. Each costs eight bytes, so watching a long run is
cheap.
"""

from __future__ import annotations

import logging
from array import array
from bisect import bisect_left
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from typing import Any

from attrs import define, field
from tenacity import RetryCallState, RetryError

from arkor.client.http.deadline import Deadline
from arkor.client.streaming.backoff import ReconnectPolicy, reconnect_attempts
from arkor.client.streaming.connection import Opener, Received, StreamConnection, StreamEnd, StreamFault
from arkor.errors import BackendUnavailable, CloudApiError, StreamLost
from arkor.protocol.events import Event

#: A number of so many digits fits into eight bytes. It is kept as it is, so that rising ids need no sorting; anything
#: else is kept by its hash.
_DIGITS = 18


class ReplayGuard:
    """The events of this connection and of the earlier ones, by their ids; by their data where they have none."""

    def __init__(self) -> None:
        self._earlier = array("q")  # sorted
        self._current = array("q")
        self._ascending = True  # whether those of this connection are sorted as they came
        self._last: tuple[str | None, str] | None = None

    def connected(self) -> None:
        """A new connection begins: from here on, what came before is a replay."""
        follows = not self._earlier or not self._current or self._earlier[-1] < self._current[0]
        self._earlier.extend(self._current)
        if not (self._ascending and follows):
            self._earlier = array("q", sorted(self._earlier))
        self._current, self._ascending, self._last = array("q"), True, None

    def is_replay(self, event_id: str | None, data: str) -> bool:
        """Whether this event was here before; if not, it is from now on.

        Within one connection, an id that comes again is a replay only if its data is the same, too, as far as that
        is known: an event that was never seen must not get lost for an id that was given twice.
        """
        number = event_id and len(event_id) <= _DIGITS and event_id.isascii() and event_id.isdigit()
        key = int(event_id) if event_id and number else hash(event_id or data)
        if self._earlier and _has(self._earlier, key):
            return True
        if self._current and key <= self._current[-1]:
            if key == self._current[-1]:
                return self._last == (event_id, data)
            if self._ascending and event_id and _has(self._current, key):
                return True
            self._ascending = False
        self._current.append(key)
        self._last = (event_id, data)
        return False


def _has(keys: Sequence[int], key: int) -> bool:
    place = bisect_left(keys, key)
    return place < len(keys) and keys[place] == key


logger = logging.getLogger("arkor")

_FINAL_STATUSES = frozenset({401, 403, 410, 426})


@define(eq=False)
class EventStream:
    """The events of one run behind `cursor`, the id of the last one that was handed on."""

    opener: Opener
    policy: ReconnectPolicy
    cursor: str | None = None
    _guard: ReplayGuard = field(factory=ReplayGuard)
    _base_delay: float | None = None

    def events(self, deadline: Deadline) -> Generator[Event | StreamEnd, None, None]:
        """Yield events until `END`; throw a fault into it to reconnect behind the event that was last.

        Raises `CloudApiError` for an answer that retrying cannot change, `StreamLost` when the policy's attempts
        are used up, and whatever `deadline` raises.
        """
        while True:
            yield from self._connections(deadline)
            delay = self.policy.delay(1, self._base_delay)
            logger.info("the event stream came to an end before the run did; reconnecting in %.1f s", delay)
            deadline.sleep(delay)

    def _connections(self, deadline: Deadline) -> Iterator[Any]:
        """Connections until one ends cleanly after it made progress; each fault before that counts."""
        attempts = reconnect_attempts(self.policy, deadline, is_transient, lambda: self._base_delay)
        try:
            for attempt in attempts:
                with attempt:
                    yield from self._one_connection(deadline, attempt.retry_state)
        except RetryError as error:
            failures = error.last_attempt.attempt_number
            cause = error.last_attempt.exception()
            raise StreamLost(f"the event stream failed {failures} times in a row; the last time: {cause}") from cause

    def _one_connection(self, deadline: Deadline, failures: RetryCallState) -> Iterator[Any]:
        deadline.raise_if_expired()
        self._guard.connected()
        received_any = False
        with StreamConnection(self.opener, self.cursor) as connection:
            for item in _received(connection, deadline):
                if item.progress and not received_any:
                    received_any = True
                    failures.attempt_number = 1  # what breaks from here on is the first failure in a row
                self._base_delay = connection.retry_seconds
                if self._advance(item):
                    yield item.event
                    deadline.raise_if_expired()
        if not received_any:
            raise StreamFault("the event stream ended without a single event")

    def _advance(self, item: Received) -> bool:
        """Move the cursor; False for what is not handed on: garbage, replays."""
        if (item.id or item.event is not None) and self._guard.is_replay(item.id, item.data):
            return False
        if item.id is not None:
            self.cursor = item.id or None
        return item.event is not None


def _received(connection: StreamConnection, deadline: Deadline) -> Iterator[Received]:
    """What comes over the connection, until it ends."""
    with suppress(EOFError):
        while True:
            yield connection.receive() or deadline.poll(connection.receive)


def is_transient(error: BaseException) -> bool:
    """Whether trying again may help: faults of the network and most error statuses, never an abort."""
    if isinstance(error, CloudApiError):
        return error.status not in _FINAL_STATUSES
    return isinstance(error, (StreamFault, BackendUnavailable))
