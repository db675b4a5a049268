"""How long the caller is willing to wait, and how everybody's waiting ends with that.

The one place that looks at the abort signal and at the deadline. What is waited for runs on other threads, so that a
signal and Ctrl-C are heard at once.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from attrs import define, field

from arkor.client.http.cancellation import CancelScope
from arkor.errors import TrainerAborted

T = TypeVar("T")

#: How often a blocked wait looks at its abort signal, in seconds.
POLL_SECONDS = 0.025
#: How long to see off a thread whose plug was pulled: it is gone at once, unless it resolves a name.
CANCEL_GRACE_SECONDS = 0.05


@define
class Deadline:
    """The caller's abort signal and deadline; every pause goes through here.

    `timeout_note` is for the error's sentence: what becomes of the thing that was waited for.
    """

    abort_signal: threading.Event = field(factory=threading.Event)
    expires_at: float | None = None  # on time.monotonic()
    timeout_note: str = "the run itself goes on"

    @classmethod
    def after(cls, abort_signal: threading.Event | None, timeout: float | None) -> Deadline:
        expires_at = None if timeout is None else time.monotonic() + max(0.0, timeout)
        return cls(abort_signal or threading.Event(), expires_at)

    def raise_if_expired(self) -> None:
        """Raises `TrainerAborted` or `TimeoutError` when it is over."""
        if self.abort_signal.is_set():
            raise TrainerAborted(f"the abort signal is set; {self.timeout_note}")
        if self.expires_at is not None and time.monotonic() >= self.expires_at:
            raise TimeoutError(f"wait() reached its timeout; {self.timeout_note}")

    def sleep(self, seconds: float) -> None:
        """Sleep, or raise as soon as it is over."""
        end = time.monotonic() + seconds
        while (remaining := end - time.monotonic()) > 0:
            self.raise_if_expired()
            if self.expires_at is not None:
                remaining = min(remaining, max(0.0, self.expires_at - time.monotonic()))
            self.abort_signal.wait(remaining)
        self.raise_if_expired()

    def poll(self, attempt: Callable[[float], Any]) -> Any:
        """Call `attempt(seconds)` until it returns something else than None, looking here in between."""
        while True:
            self.raise_if_expired()
            if (result := attempt(POLL_SECONDS)) is not None:
                return result

    def call(self, function: Callable[[], T], discard: Callable[[T], Any] | None = None) -> T:
        """The result of a function that blocks on the network, called on a thread of its own.

        When patience ends first, the connections of the call are cut; a result that comes all the same goes to
        `discard`.
        """
        scope = CancelScope()
        outcome: queue.SimpleQueue[Callable[[], T]] = queue.SimpleQueue()
        thread = threading.Thread(target=_run, args=(scope, function, outcome, discard), name="arkor-call", daemon=True)
        thread.start()
        try:
            result: Callable[[], T] = self.poll(lambda seconds: _take(outcome, seconds))
        except BaseException:
            scope.cancel()
            thread.join(CANCEL_GRACE_SECONDS)
            raise
        thread.join()
        scope.release()
        return result()


def _take(outcome: queue.SimpleQueue[T], seconds: float) -> T | None:
    with suppress(queue.Empty):
        return outcome.get(timeout=seconds)
    return None


def _run(
    scope: CancelScope,
    function: Callable[[], T],
    outcome: queue.SimpleQueue[Callable[[], T]],
    discard: Callable[[T], Any] | None,
) -> None:
    try:
        with scope:
            result = function()
    except BaseException as error:  # noqa: BLE001 - raised again on the caller's thread
        outcome.put(_raiser(error))
        return
    if scope.cancelled and discard is not None:
        discard(result)
    outcome.put(lambda: result)


def _raiser(error: BaseException) -> Callable[[], Any]:
    def raise_error() -> Any:
        raise error

    return raise_error
