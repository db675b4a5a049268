"""Wait for results on other threads until the caller's deadline or abort signal."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from attrs import define, field

from arkor.client.http.cancellation import CancelScope
from arkor.errors import TrainerAborted

T = TypeVar("T")

#: Seconds between two checks of the abort signal during a blocking wait.
POLL_SECONDS = 0.025
#: Seconds to wait for a cancelled thread; it ends at once, unless it is resolving a host name.
CANCEL_GRACE_SECONDS = 0.05


@define
class Deadline:
    """The caller's abort signal and deadline; `timeout_note` ends their error messages."""

    abort_signal: threading.Event = field(factory=threading.Event)
    expires_at: float | None = None  # on time.monotonic()
    timeout_note: str = "the run itself continues"

    @classmethod
    def after(cls, abort_signal: threading.Event | None, timeout: float | None) -> Deadline:
        expires_at = None if timeout is None else time.monotonic() + max(0.0, timeout)
        return cls(abort_signal or threading.Event(), expires_at)

    def raise_if_expired(self) -> None:
        """Raise `TrainerAborted` if the signal is set, `TimeoutError` after the deadline."""
        if self.abort_signal.is_set():
            raise TrainerAborted(f"the abort signal is set; {self.timeout_note}")
        if self.expires_at is not None and time.monotonic() >= self.expires_at:
            raise TimeoutError(f"wait() reached its timeout; {self.timeout_note}")

    def sleep(self, seconds: float) -> None:
        """Sleep; raise as `raise_if_expired` does as soon as that applies."""
        self.raise_if_expired()
        left = math.inf if self.expires_at is None else max(0.0, self.expires_at - time.monotonic())
        self.abort_signal.wait(min(seconds, left))
        self.raise_if_expired()

    def poll(self, attempt: Callable[[float], Any]) -> Any:
        """Call `attempt(seconds)` until it returns a value other than None, or raise."""
        while True:
            self.raise_if_expired()
            if (result := attempt(POLL_SECONDS)) is not None:
                return result

    def call(self, function: Callable[[], T], discard: Callable[[T], Any] | None = None) -> T:
        """Return the result of a function that blocks on the network, called on its own thread.

        After the deadline or an abort, its connections are shut down; a result that arrives
        nevertheless is passed to `discard`.
        """
        scope = CancelScope()
        results: list[T] = []
        errors: list[BaseException] = []
        done = threading.Event()  # polled, because a KeyboardInterrupt in join() breaks the next join()

        def run() -> None:
            try:
                with scope:
                    results.append(function())
                if scope.cancelled and discard is not None:
                    discard(results[0])
            except BaseException as error:  # noqa: BLE001 - raised again on the caller's thread
                errors.append(error)
            finally:
                done.set()

        thread = threading.Thread(target=run, name="arkor-call", daemon=True)
        thread.start()
        try:
            self.poll(lambda seconds: done.wait(seconds) or None)
        except BaseException:
            scope.cancel()
            thread.join(CANCEL_GRACE_SECONDS)
            raise
        thread.join()
        scope.release()
        if errors:
            raise errors[0]
        return results[0]
