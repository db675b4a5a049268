"""Delays between reconnects: `ReconnectPolicy`, and a retry loop that follows it."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable

from attrs import frozen
from tenacity import Retrying, stop_after_attempt, stop_never

from arkor.client.http.deadline import Deadline
from arkor.errors import InvalidConfig
from arkor.retry import retrying

logger = logging.getLogger("arkor")

#: Seconds to wait at least when a server asks for an immediate retry.
MIN_RETRY_AFTER = 0.1


@frozen
class ReconnectPolicy:
    """Delays in seconds; `max_attempts` failures in a row are tolerated (None: any number)."""

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
        """Return the seconds to wait after `failures` (≥ 1): doubling, ±25 %, up to `max_delay`.

        `base` is the first delay if the server asked for one (`retry:`).
        """
        base = self.initial_delay if base is None else max(base, MIN_RETRY_AFTER)
        exponential = min(base * 2.0 ** min(failures - 1, 64), self.max_delay)
        return min(exponential * random.uniform(0.75, 1.25), self.max_delay)  # noqa: S311 - jitter, not a secret


def reconnect_attempts(
    policy: ReconnectPolicy,
    deadline: Deadline,
    is_transient: Callable[[BaseException], bool],
    base: Callable[[], float | None],
) -> Retrying:
    """Return a retry loop that logs each transient error once and waits according to the policy.

    An error's `retry_after` (seconds) replaces the policy's delay, up to its cap; `base` returns
    the server's first delay or None. The loop raises `tenacity.RetryError` after more than
    `policy.max_attempts` failures in a row.
    """

    def delay(error: BaseException, failures: int) -> float:
        retry_after = getattr(error, "retry_after", None)
        if retry_after:
            return float(min(max(retry_after, MIN_RETRY_AFTER), policy.max_delay))
        return policy.delay(failures, base())

    def log(error: BaseException, seconds: float) -> None:
        logger.warning("%s; reconnecting in %.1f s", str(error) or type(error).__name__, seconds)

    attempts = policy.max_attempts
    stop = stop_never if attempts is None else stop_after_attempt(attempts + 1)
    return retrying(is_transient, delay, stop, sleep=deadline.sleep, log=log, reraise=False)
