"""How long to wait between two attempts: `ReconnectPolicy`, and a tenacity loop that follows it.

Who may cut the waiting short is in `client/http/deadline.py`; what counts as a failure is decided in `event_stream.py`.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable

from attrs import frozen
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, stop_never
from tenacity.wait import wait_base

from arkor.client.http.deadline import Deadline
from arkor.errors import InvalidConfig

logger = logging.getLogger("arkor")

#: A server that asks to be called back at once is called back after so many seconds, lest it become a hot loop.
MIN_RETRY_AFTER = 0.1


@frozen
class ReconnectPolicy:
    """Delays in seconds; `max_attempts` consecutive failures are survived (None: any number)."""

    initial_delay: float = 1.0
    max_delay: float = 60.0
    max_attempts: int | None = None

    def __attrs_post_init__(self) -> None:
        for name in ("initial_delay", "max_delay"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 86_400:
                raise InvalidConfig(f"reconnect.{name}", f"must be seconds between 0 and 86400, not {value!r}")
        attempts = self.max_attempts
        if attempts is not None and (isinstance(attempts, bool) or not isinstance(attempts, int) or attempts < 0):
            raise InvalidConfig("reconnect.max_attempts", f"must be a whole number or None, not {attempts!r}")

    def delay(self, failures: int, base: float | None = None) -> float:
        """Seconds to wait after that many consecutive failures (≥ 1): doubled each time, ±25 %, never above the cap.

        `base` is the server's own wish for the first delay (`retry:`), where it has one.
        """
        base = self.initial_delay if base is None else max(base, MIN_RETRY_AFTER)
        exponential = min(base * 2.0 ** min(failures - 1, 64), self.max_delay)
        return min(exponential * random.uniform(0.75, 1.25), self.max_delay)  # noqa: S311 - jitter, not a secret


class _Delay(wait_base):
    """A failure that says itself how long to wait (`retry_after`, seconds) is believed, up to the cap."""

    def __init__(self, policy: ReconnectPolicy, base: Callable[[], float | None]) -> None:
        self._policy = policy
        self._base = base

    def __call__(self, retry_state: RetryCallState) -> float:
        error = retry_state.outcome.exception() if retry_state.outcome else None
        retry_after = getattr(error, "retry_after", None)
        if retry_after:
            return float(min(max(retry_after, MIN_RETRY_AFTER), self._policy.max_delay))
        return self._policy.delay(retry_state.attempt_number, self._base())


def reconnect_attempts(
    policy: ReconnectPolicy,
    deadline: Deadline,
    transient: Callable[[BaseException], bool],
    base: Callable[[], float | None],
) -> Retrying:
    """A tenacity loop: what is `transient` is told once and tried again; the last error is the cause of its end.

    Raises `tenacity.RetryError` when `policy.max_attempts` are used up. `base` gives the server's own wish for the
    first delay, in seconds, or None.
    """

    def log_failure(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        logger.warning("%s; reconnecting in %.1f s", _sentence(error), state.upcoming_sleep)

    attempts = policy.max_attempts
    return Retrying(
        retry=retry_if_exception(transient),
        wait=_Delay(policy, base),
        stop=stop_never if attempts is None else stop_after_attempt(attempts + 1),
        sleep=deadline.sleep,
        before_sleep=log_failure,
    )


def _sentence(error: BaseException | None) -> str:
    return str(error) or type(error).__name__
