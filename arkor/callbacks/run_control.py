"""Control of a run from its callbacks: cancel the run, or stop waiting for it."""

from __future__ import annotations

from collections.abc import Callable

from attrs import field, frozen

from arkor.errors import ArkorError, CloudApiError

_CONFLICT = 409  # the status of a cancel request for a run that has ended


def _no_control(*_: str) -> None:
    raise ArkorError("this context was not created by a trainer, so it has no run to control")


@frozen
class RunControl:
    """The actions of a context, set by the trainer."""

    cancel: Callable[[], None] = _no_control
    stop_waiting: Callable[[str], None] = _no_control


@frozen(slots=False)  # without slots, an instance is created twice as fast; there is one per log
class ControlledContext:
    """Base of the contexts of a run that has not ended."""

    _control: RunControl = field(factory=RunControl, repr=False, eq=False, kw_only=True)

    def cancel(self) -> bool:
        """Ask the backend to stop the run. Return False if it had ended already.

        `wait()` returns when the run has stopped. Raise `CloudApiError` if the backend refuses.
        """
        try:
            self._control.cancel()
        except CloudApiError as error:
            if error.status != _CONFLICT:
                raise
            return False
        return True

    def stop_waiting(self, reason: str = "a callback asked for it") -> None:
        """Make `wait()` raise `TrainerAborted` with this reason after the callbacks of this event.

        The run continues, and a further `wait()` resumes after this event.
        """
        self._control.stop_waiting(reason)
