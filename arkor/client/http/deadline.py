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

from arkor.client.http.cancellation import Plug
from arkor.errors import TrainerAborted

T = TypeVar("T")

#: How often a blocked wait looks at its abort signal, in seconds.
POLL_SECONDS = 0.025
#: How long to see off a thread whose plug was pulled: it is gone at once, unless it resolves a name.
FAREWELL_SECONDS = 0.05


@define
class Patience:
    """The caller's abort signal and deadline; every pause goes through here.

    `meanwhile` is for the error's sentence: what becomes of the thing that was waited for.
    """

    abort_signal: threading.Event = field(factory=threading.Event)
    deadline: float | None = None  # on time.monotonic()
    meanwhile: str = "the run itself goes on"

    @classmethod
    def until(cls, abort_signal: threading.Event | None, timeout: float | None) -> Patience:
        deadline = None if timeout is None else time.monotonic() + max(0.0, timeout)
        return cls(abort_signal or threading.Event(), deadline)

    def check(self) -> None:
        """Raises `TrainerAborted` or `TimeoutError` when it is over."""
        if self.abort_signal.is_set():
            raise TrainerAborted(f"the abort signal is set; {self.meanwhile}")
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise TimeoutError(f"wait() reached its timeout; {self.meanwhile}")

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

    def call(self, function: Callable[[], T], discard: Callable[[T], Any] | None = None) -> T:
        """The result of a function that blocks on the network, called on a thread of its own.

        When patience ends first, the connections of the call are cut; a result that comes all the same goes to
        `discard`.
        """
        plug = Plug()
        outcome: queue.SimpleQueue[Callable[[], T]] = queue.SimpleQueue()
        thread = threading.Thread(target=_run, args=(plug, function, outcome, discard), name="arkor-call", daemon=True)
        thread.start()
        try:
            give: Callable[[], T] = self.poll(lambda seconds: _take(outcome, seconds))
        except BaseException:
            plug.pull()
            thread.join(FAREWELL_SECONDS)
            raise
        thread.join()
        plug.release()
        return give()


def _take(outcome: queue.SimpleQueue[T], seconds: float) -> T | None:
    with suppress(queue.Empty):
        return outcome.get(timeout=seconds)
    return None


def _run(
    plug: Plug,
    function: Callable[[], T],
    outcome: queue.SimpleQueue[Callable[[], T]],
    discard: Callable[[T], Any] | None,
) -> None:
    try:
        with plug:
            result = function()
    except BaseException as error:  # noqa: BLE001 - raised again on the caller's thread
        outcome.put(_raiser(error))
        return
    if plug.pulled and discard is not None:
        discard(result)
    outcome.put(lambda: result)


def _raiser(error: BaseException) -> Callable[[], Any]:
    def give() -> Any:
        raise error

    return give
