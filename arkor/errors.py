"""Every error that arkor raises on purpose.

    ArkorError                    catch this one to catch them all
    ├── InvalidConfig             a value of yours is wrong (also a ValueError); names the field
    ├── CloudApiError             the backend answered with an error status
    ├── BackendUnavailable        the backend could not be reached or started
    ├── StreamLost                all reconnects failed; the last failure is its __cause__
    ├── TrainerAborted            the abort signal was set while wait() was waiting
    ├── TrainingFailed            result.raise_for_status() on a run that did not complete
    ├── CredentialsError          the credentials are unreadable, expired, or for another backend
    └── ProjectStateMismatch      .arkor/state.json belongs to another organisation

An error carries its parts: `problem`, and where they apply `field`, `remedy` and `code`. `str()`
joins them for a person; nothing parses that text. Every error survives pickling.
"""

from __future__ import annotations

from attrs import frozen


@frozen
class Problem:
    """A wrong `field`, its problem, a `remedy` for a person and a `code` for programs."""

    problem: str
    field: str | None = None
    remedy: str | None = None
    code: str | None = None

    def __str__(self) -> str:
        """`"max_steps: must be at least 1; leave it out"`; whole sentences are joined by a space."""
        text = f"{self.field}: {self.problem}" if self.field else self.problem
        if not self.remedy:
            return text
        return f"{text}{' ' if text.endswith(('.', '!', '?')) else '; '}{self.remedy}"


class StructuredError(Exception):
    """Base of errors that carry the parts of a `Problem`, in the `ArkorError` tree or not."""

    def __init__(
        self, problem: str = "", *, field: str | None = None, remedy: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(problem)
        self.problem = problem
        self.field = field
        self.remedy = remedy
        self.code = code

    def __str__(self) -> str:
        return str(Problem(self.problem, self.field, self.remedy))


class ArkorError(StructuredError):
    """Base of every error that arkor raises on purpose."""


class InvalidConfig(ArkorError, ValueError):
    """A value that the caller gave is of the wrong type or out of range.

    `field` is its Python name (`"max_steps"`), `problem` what is wrong, `remedy` what to write
    instead.
    """

    field: str

    def __init__(self, field: str, problem: str, remedy: str | None = None, *, code: str | None = None) -> None:
        super().__init__(problem, field=field, remedy=remedy, code=code)
        self.args = (field, problem)


class CloudApiError(ArkorError):
    """The backend answered with an error status.

    `status` is the HTTP status, `message` the sentence of the body, `code` its machine-readable word
    if there is one. An error about a `field`, by its wire name, also has `problem` and `remedy`.
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
        problem: str | None = None,
        field: str | None = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(problem or message, field=field, remedy=remedy, code=code)
        self.args = (status, code, message)
        self.status = status
        self.message = message
        self.method = method
        self.path = path
        self.request_id = request_id
        self.retry_after = retry_after

    def __str__(self) -> str:
        request = f"{self.method} {self.path}, " if self.method else ""
        return f"{self.message} ({request}status {self.status})"


class BackendUnavailable(ArkorError):
    """The backend could not be reached or started, or closed the connection."""


class StreamLost(ArkorError):
    """The event stream could not be reopened within the allowed attempts; the run continues."""


class TrainerAborted(ArkorError):
    """The abort signal was set while `wait()` was waiting; the run continues."""


class TrainingFailed(ArkorError):
    """`TrainingResult.raise_for_status()` on a run that failed or was cancelled."""


class CredentialsError(ArkorError):
    """The credentials cannot be read, have expired, or belong to another backend."""


class ProjectStateMismatch(ArkorError):
    """`.arkor/state.json` names another organisation than the credentials do."""


def is_transient(status: int) -> bool:
    """Return whether a request with this HTTP error status is worth repeating."""
    return status in (408, 425, 429) or status >= 500
