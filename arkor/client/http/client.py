"""Send requests to one backend: authentication, timeouts, error statuses and retries."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import requests
from attrs import field, frozen
from tenacity import RetryCallState
from urllib3.exceptions import HTTPError

from arkor.client.http.auth import Auth
from arkor.client.http.cancellation import raise_if_cancelled, sleep
from arkor.client.http.decoding import json_object
from arkor.client.http.errors import parse_error, unavailable_error, was_never_sent
from arkor.client.http.session import CredentialSafeSession
from arkor.client.http.versions import report_deprecation
from arkor.errors import ArkorError, BackendUnavailable, CloudApiError, InvalidConfig, is_transient
from arkor.files import atomic_writer
from arkor.protocol.codec import dumps
from arkor.protocol.retry import error_of, retrying
from arkor.protocol.transport import IDEMPOTENCY_HEADER, HeaderAuth

logger = logging.getLogger("arkor")

#: Seconds to connect, and between two bytes of a response.
TIMEOUT = (10.0, 60.0)
#: Seconds during which a failed call is retried; and if no connection could be made.
RETRY_BUDGET = 30.0
UNREACHABLE_BUDGET = 5.0

_IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "DELETE"})
_CONNECTION_ERRORS = (requests.RequestException, HTTPError)
_TRANSIENT_ERRORS = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError, HTTPError)


@frozen
class Call:
    """A request; `raw_headers` are not validated, `timeout` is in seconds.

    `upload` opens the file that is streamed as the body; it is called again for each attempt.
    """

    method: str
    path: str
    query: Mapping[str, str] | None = None
    body: Any = None
    upload: Callable[[], IO[bytes]] | None = None
    headers: Mapping[str, str] = field(factory=dict)
    raw_headers: Mapping[str, bytes] = field(factory=dict)
    timeout: tuple[float, float] = TIMEOUT
    repeatable: bool = False

    def data(self) -> bytes | IO[bytes] | None:
        """Return the body to send; raise `InvalidConfig` if it has no JSON form, or OSError."""
        if self.upload is not None:
            return self.upload()
        try:
            return None if self.body is None else dumps(self.body).encode()
        except (ValueError, TypeError, RecursionError) as error:
            raise InvalidConfig("request", f"cannot be written as JSON: {error}") from None

    def all_headers(self) -> dict[str, str]:
        if self.upload is not None:
            return {"Content-Type": "application/octet-stream", **self.headers}
        return dict(self.headers) if self.body is None else {"Content-Type": "application/json", **self.headers}


#: Statuses with which a backend refuses a request before it does anything.
_REFUSALS = frozenset({425, 429, 503})


class HttpClient:
    """Calls to one backend; thread-safe and usable after a fork.

    `retry_budget` is in seconds; 0 disables retries.
    """

    def __init__(self, auth: Auth, *, retry_budget: float = RETRY_BUDGET) -> None:
        self.auth = auth
        self.retry_budget = retry_budget
        self._honours_keys = auth.honours_idempotency_keys
        self._session: requests.Session | None = None
        self._process = 0

    def call(self, method: str, path: str, **rest: Any) -> dict[str, Any]:
        """Send a `Call` and return the JSON object of the response (empty if it has no body).

        Idempotent methods and `repeatable` calls are retried after transient errors, and calls with
        an `Idempotency-Key` if the backend honours it. Raise `CloudApiError` for an error status,
        `BackendUnavailable` without a response.
        """
        call = Call(method, path, **rest)
        idempotent = call.repeatable or method in _IDEMPOTENT
        keyed = "Idempotency-Key" in call.headers

        def may_repeat(error: BaseException) -> bool:
            if was_never_sent(error) or not _is_transient(error):
                return was_never_sent(error)
            return idempotent or (keyed and (_is_refusal(error) or self.honours_idempotency_keys()))

        maybe_applied: list[bool] = []  # for each failed attempt, whether the backend may have carried it out
        attempts = retrying(may_repeat, _retry_delay, self._is_budget_spent, sleep=sleep, log=_log_retry)
        try:
            return attempts(self._attempt, call, maybe_applied)
        except _CONNECTION_ERRORS as error:
            raise unavailable_error(self.auth.base_url, error) from error

    def honours_idempotency_keys(self) -> bool:
        """Return whether the backend has shown that it does; ask it if it has not answered yet."""
        if not self._honours_keys:
            probe = HttpClient(self.auth, retry_budget=min(self.retry_budget, UNREACHABLE_BUDGET))
            with contextlib.suppress(BackendUnavailable, CloudApiError):
                probe.call("GET", "/healthz")
            probe.close()
            self._honours_keys = probe._honours_keys
        return self._honours_keys

    def _attempt(self, call: Call, maybe_applied: list[bool]) -> dict[str, Any]:
        try:
            return json_object(self._send(call))
        except CloudApiError as error:
            if call.method == "DELETE" and error.status in (404, 410) and any(maybe_applied):
                return {}  # an earlier attempt deleted it, although its response was lost
            maybe_applied.append(error.status == 408 or error.status >= 500)
            raise
        except _CONNECTION_ERRORS as error:
            maybe_applied.append(not was_never_sent(error))
            raise

    def open(self, method: str, path: str, **rest: Any) -> requests.Response:
        """Send a `Call` once and return the response with its body unread; the caller closes it.

        Raise `CloudApiError` for an error status, `BackendUnavailable` without a response.
        """
        try:
            return self._send(Call(method, path, **rest))
        except _CONNECTION_ERRORS as error:
            raise unavailable_error(self.auth.base_url, error) from error

    def save(self, file: Path, method: str, path: str, **rest: Any) -> None:
        """Send a `Call` once and write the body of the response to `file` atomically.

        Raise `CloudApiError`, `BackendUnavailable`, and OSError if the file cannot be written.
        """
        with self.open(method, path, **rest) as response, atomic_writer(file) as target:
            try:
                for chunk in response.iter_content(1024 * 1024):
                    target.write(chunk)
            except _CONNECTION_ERRORS as error:
                raise unavailable_error(self.auth.base_url, error) from error

    def close(self) -> None:
        """Close idle connections; the next call opens a new one."""
        if self._session is not None and self._process == os.getpid():
            self._session.close()

    def _is_budget_spent(self, state: RetryCallState) -> bool:
        """Return whether the next attempt would start after the end of the budget."""
        error = error_of(state)
        budget = min(self.retry_budget, UNREACHABLE_BUDGET) if was_never_sent(error) else self.retry_budget
        return (state.seconds_since_start or 0.0) + _retry_delay(error, state.attempt_number) > budget

    def _send(self, call: Call) -> requests.Response:
        """Send the call, and once more if an outdated address or token could be renewed."""
        self.auth.prepare()
        token = self.auth.token
        try:
            return self._send_once(call, token)
        except (requests.ConnectionError, CloudApiError) as error:
            raise_if_cancelled()
            rejected = isinstance(error, CloudApiError) and error.status == 401
            renewed = self.auth.refresh_token(token) if rejected else was_never_sent(error) and self.auth.refresh()
            if not renewed:
                raise
        return self._send_once(call, self.auth.token)

    def _send_once(self, call: Call, token: str | None) -> requests.Response:
        base_url = self.auth.base_url
        if self._session is None or self._process != os.getpid():  # the parent's connections are not ours to use
            self._session, self._process = CredentialSafeSession(), os.getpid()
        data = call.data()
        try:
            response = self._session.request(
                call.method,
                base_url + call.path,
                params=call.query,
                data=data,
                headers=call.all_headers(),
                timeout=call.timeout,
                auth=HeaderAuth(token, call.raw_headers),
                stream=True,
            )
        except requests.RequestException:
            raise
        except UnicodeError:  # undecodable bytes from a command line
            raise InvalidConfig("request", "contains invalid Unicode and cannot be sent") from None
        except OSError as error:  # a missing certificate bundle
            raise unavailable_error(base_url, error) from error
        finally:
            if isinstance(data, io.IOBase):
                data.close()
        report_deprecation(response.headers)
        if response.headers.get(IDEMPOTENCY_HEADER):
            self._honours_keys = True
        if not 200 <= response.status_code < 300:
            raise parse_error(response)
        return response


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, CloudApiError):
        return is_transient(error.status)
    untrusted = isinstance(error, requests.exceptions.SSLError)  # a retry cannot change a certificate
    return isinstance(error, _TRANSIENT_ERRORS) and not untrusted


def _is_refusal(error: BaseException) -> bool:
    return isinstance(error, CloudApiError) and error.status in _REFUSALS


def may_have_succeeded(error: ArkorError) -> bool:
    """Return whether a failed call may have been carried out, although its answer was lost."""
    if isinstance(error, CloudApiError):
        return (error.status == 408 or error.status >= 500) and not _is_refusal(error)
    return isinstance(error, BackendUnavailable) and not (error.__cause__ and was_never_sent(error.__cause__))


def _retry_delay(error: BaseException, attempt: int) -> float:
    """Return the seconds that the backend asked for, or an exponential delay, with jitter."""
    backoff = min(0.25 * 2.0 ** min(attempt - 1, 16), 8.0) + random.uniform(0.0, 0.25)  # noqa: S311 - jitter, not a secret
    requested = getattr(error, "retry_after", None)
    return backoff if requested is None else requested + backoff / 10


def _log_retry(error: BaseException, seconds: float) -> None:
    cause = error if isinstance(error, CloudApiError) else type(error).__name__
    logger.warning("a call to the backend failed (%s); trying again in %.1f s", cause, seconds)
