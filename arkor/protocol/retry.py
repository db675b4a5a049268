"""Retry loops: the one place that sets up tenacity."""

from __future__ import annotations

import time
from collections.abc import Callable

from tenacity import RetryCallState, Retrying, retry_if_exception
from tenacity.stop import stop_base


def retrying(
    is_transient: Callable[[BaseException], bool],
    delay: Callable[[BaseException, int], float],
    stop: stop_base | Callable[[RetryCallState], bool],
    *,
    sleep: Callable[[float], None] = time.sleep,
    log: Callable[[BaseException, float], None] = lambda *_: None,
    reraise: bool = True,
) -> Retrying:
    """Return a loop that repeats an attempt as long as it fails with a transient error.

    `delay(error, attempt)` returns the seconds until the next attempt; `attempt` counts from 1.
    `log(error, seconds)` is called before each pause. Unless `reraise`, the loop ends with
    `tenacity.RetryError`.
    """

    return Retrying(
        retry=retry_if_exception(is_transient),
        wait=lambda state: delay(error_of(state), state.attempt_number),
        stop=stop,
        sleep=sleep,
        before_sleep=lambda state: log(error_of(state), state.upcoming_sleep),
        reraise=reraise,
    )


def error_of(state: RetryCallState) -> BaseException:
    error = state.outcome.exception() if state.outcome is not None else None
    assert error is not None  # noqa: S101 - the loop repeats failed attempts only
    return error
