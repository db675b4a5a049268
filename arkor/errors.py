"""Every error that arkor raises on purpose.

    ArkorError                    catch this one to catch them all
    ├── InvalidConfig             a value of yours is wrong (also a ValueError); names the field
    ├── CloudApiError             the backend answered with an error status
    ├── BackendUnavailable        the backend could not be reached, or none started on this machine
    ├── StreamLost                reconnecting was given up; the last fault is its __cause__
    ├── TrainerAborted            the abort signal was set while wait() was waiting
    ├── TrainingFailed            result.raise_for_status() on a run that did not complete
    ├── CredentialsError          the credentials cannot be read, have ended, or belong to another backend
    └── ProjectStateMismatch      .arkor/state.json belongs to another organisation

Each one prints as a sentence for a person and survives pickling.
"""

from __future__ import annotations

from typing import Any


class ArkorError(Exception):
    """Base of every error that arkor raises on purpose."""


class InvalidConfig(ArkorError, ValueError):
    """A value that the caller gave is of the wrong type or out of range.

    `field` is its Python name (`"max_steps"`), `problem` says what is wrong and what to write instead.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(field, problem)
        self.field = field
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}"


class CloudApiError(ArkorError):
    """The backend answered with an error status.

    `status` is the HTTP status, `code` the machine word of the body if it had one, `str()` the sentence.
    """

    def __init__(
        self,
        status: int,
        code: str | None,
        message: str,
        *,
        method: str | None = None,
        path: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(status, code, message)
        self.status = status
        self.code = code
        self.message = message
        self.method = method
        self.path = path
        self.request_id = request_id
        self.retry_after = retry_after

    def __str__(self) -> str:
        where = f" ({self.method} {self.path}, status {self.status})" if self.method else f" (status {self.status})"
        return f"{self.message}{where}"

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), self.args, self.__dict__)


class BackendUnavailable(ArkorError):
    """The backend could not be reached or broke off, or none could be started here; the sentence says what to do."""


class StreamLost(ArkorError):
    """The event stream could not be reopened within the allowed attempts. The run itself goes on."""


class TrainerAborted(ArkorError):
    """The abort signal was set while `wait()` was waiting. The run itself goes on."""


class TrainingFailed(ArkorError):
    """`TrainingResult.raise_for_status()` on a run that failed or was cancelled."""


class CredentialsError(ArkorError):
    """The credentials cannot be read, have ended, or belong to another backend than the one asked for."""


class ProjectStateMismatch(ArkorError):
    """`.arkor/state.json` names another organisation than the credentials do; it is left untouched."""
