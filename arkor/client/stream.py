"""The event pump: one run's events, in order, each exactly once, whatever the network does.

The caller's thread takes what a `Connection` has read, keeps the cursor, decides what a fault means, and does all the
waiting. What an event does is the business of `dispatch.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator
from contextlib import suppress
from typing import Any

from attrs import define, field
from tenacity import RetryCallState, RetryError

from arkor.client.connection import Connection, Opener, Received, StreamEnd, StreamFault
from arkor.client.patience import Patience
from arkor.client.replay import ReplayGuard
from arkor.client.retry import ReconnectPolicy, reconnecting
from arkor.errors import BackendUnavailable, CloudApiError, StreamLost
from arkor.events import Event

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

    def events(self, patience: Patience) -> Generator[Event | StreamEnd, None, None]:
        """Yield events until `END`; throw a fault into it to reconnect behind the event that was last.

        Raises `CloudApiError` for an answer that retrying cannot change, `StreamLost` when the policy's attempts
        are used up, and whatever `patience` raises.
        """
        while True:
            yield from self._until_clean_end(patience)
            delay = self.policy.delay(1, self._base_delay)
            logger.info("the event stream came to an end before the run did; reconnecting in %.1f s", delay)
            patience.pause(delay)

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
        heard = False
        with Connection(self.opener, self.cursor) as connection:
            for item in _received(connection, patience):
                if item.progress and not heard:
                    heard = True
                    failures.attempt_number = 1  # what breaks from here on is the first failure in a row
                self._base_delay = connection.retry_seconds
                if self._moves_on(item):
                    yield item.event
                    patience.check()
        if not heard:
            raise StreamFault("the event stream ended without a single event")

    def _moves_on(self, item: Received) -> bool:
        """Move the cursor; False for what is not handed on: garbage, replays."""
        if (item.id or item.event is not None) and self._guard.is_replay(item.id, item.data):
            return False
        if item.id is not None:
            self.cursor = item.id or None
        return item.event is not None


def _received(connection: Connection, patience: Patience) -> Iterator[Received]:
    """What comes over the connection, until it ends."""
    with suppress(EOFError):
        while True:
            yield connection.take() or patience.poll(connection.take)


def is_transient(error: BaseException) -> bool:
    """Whether trying again may help: faults of the network and most error statuses, never an abort."""
    if isinstance(error, CloudApiError):
        return error.status not in _FINAL_STATUSES
    return isinstance(error, (StreamFault, BackendUnavailable))
