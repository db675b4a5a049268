"""How long to wait, and what ends the waiting.

`ReconnectPolicy` is the public setting, `Patience` the one place where `wait()` looks at its abort signal and its
deadline, and `reconnecting` a tenacity loop bound to both. What counts as a failure is decided in `stream.py`.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Any

from attrs import define, field, frozen
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, stop_never
from tenacity.wait import wait_base

from arkor.errors import InvalidConfig, TrainerAborted

logger = logging.getLogger("arkor")

#: How often a blocked `wait()` looks at its abort signal, in seconds.
POLL_SECONDS = 0.05


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
        """Seconds to wait after that many consecutive failures (≥ 1): doubled each time, ±25 %, never above the cap."""
        base = self.initial_delay if base is None else base
        exponential = min(base * 2.0 ** min(failures - 1, 64), self.max_delay)
        return min(exponential * random.uniform(0.75, 1.25), self.max_delay)  # noqa: S311 - jitter, not a secret


@define
class Patience:
    """The caller's abort signal and deadline; every pause of `wait()` goes through here."""

    abort_signal: threading.Event = field(factory=threading.Event)
    deadline: float | None = None  # on time.monotonic()

    @classmethod
    def until(cls, abort_signal: threading.Event | None, timeout: float | None) -> Patience:
        deadline = None if timeout is None else time.monotonic() + max(0.0, timeout)
        return cls(abort_signal or threading.Event(), deadline)

    def check(self) -> None:
        """Raises `TrainerAborted` or `TimeoutError` when it is over."""
        if self.abort_signal.is_set():
            raise TrainerAborted("the abort signal is set; the run itself goes on")
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise TimeoutError("wait() reached its timeout; the run itself goes on")

    def pause(self, seconds: float) -> None:
        """Sleep, or raise as soon as it is over."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.check()
            if self.deadline is not None:
                left = min(left, max(0.0, self.deadline - time.monotonic()))
            self.abort_signal.wait(left)
        self.check()

    def poll(self, attempt: Callable[[float], Any]) -> Any:
        """Call `attempt(seconds)` until it returns something else than None, looking here in between."""
        while True:
            self.check()
            if (result := attempt(POLL_SECONDS)) is not None:
                return result


class _Delay(wait_base):
    """A failure that says itself how long to wait (`retry_after`, seconds) is believed, up to the cap."""

    def __init__(self, policy: ReconnectPolicy, base: Callable[[], float | None]) -> None:
        self._policy = policy
        self._base = base

    def __call__(self, retry_state: RetryCallState) -> float:
        error = retry_state.outcome.exception() if retry_state.outcome else None
        asked = getattr(error, "retry_after", None)
        if asked is not None:
            return float(min(max(asked, 0.0), self._policy.max_delay))
        return self._policy.delay(retry_state.attempt_number, self._base())


def reconnecting(
    policy: ReconnectPolicy,
    patience: Patience,
    transient: Callable[[BaseException], bool],
    base: Callable[[], float | None],
) -> Retrying:
    """A tenacity loop: what is `transient` is told once and tried again; the last error is the cause of its end.

    Raises `tenacity.RetryError` when `policy.max_attempts` are used up. `base` gives the server's own wish for the
    first delay, in seconds, or None.
    """

    def tell(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        logger.warning("%s; reconnecting in %.1f s", _sentence(error), state.upcoming_sleep)

    attempts = policy.max_attempts
    return Retrying(
        retry=retry_if_exception(transient),
        wait=_Delay(policy, base),
        stop=stop_never if attempts is None else stop_after_attempt(attempts + 1),
        sleep=patience.pause,
        before_sleep=tell,
    )


def _sentence(error: BaseException | None) -> str:
    return str(error) or type(error).__name__
