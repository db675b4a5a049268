"""What a callback can do to the run that it is told of: stop it, or stop waiting for it.

How the wait comes to hear of it is the business of `trainer/dispatcher.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import field, frozen

from arkor.errors import ArkorError, CloudApiError

#: How a backend refuses to stop a run that has ended.
_CONFLICT = 409


def _no_control(*_: str) -> None:
    raise ArkorError("this context was made by hand: there is no run behind it that could be stopped")


@frozen
class RunControl:
    """The two things that a context can ask for, where a trainer made it."""

    cancel: Callable[[], None] = _no_control
    stop_waiting: Callable[[str], None] = _no_control


@frozen(slots=False)  # as `TrainingLogContext`
class ControlledContext:
    """A context of a run that is still going on."""

    _control: RunControl = field(factory=RunControl, repr=False, eq=False, kw_only=True)

    def cancel(self) -> bool:
        """Ask the backend to stop the run; False when it had ended already. `wait()` stays until it has stopped.

        Raises `CloudApiError` if the backend refuses for another reason.
        """
        try:
            self._control.cancel()
        except CloudApiError as error:
            if error.status != _CONFLICT:
                raise
            return False
        return True

    def stop_waiting(self, reason: str = "a callback asked for it") -> None:
        """`wait()` raises `TrainerAborted` with this reason when the callbacks of this event are through.

        The run itself goes on, and a further `wait()` behind this event.
        """
        self._control.stop_waiting(reason)
