"""The delays and attempts for a broken event stream."""

from __future__ import annotations

import random

from attrs import frozen

from arkor.errors import InvalidConfig

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
