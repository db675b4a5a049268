"""One requests session to one backend: who we are, time-outs, a status that is an error, a second attempt.

It knows the manners of the protocol and none of its routes; those are in `client/api.py`. Sentences of errors are made
in `errors.py`.
"""

from __future__ import annotations

import io
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import requests
from attrs import field, frozen
from tenacity import RetryCallState, Retrying, retry_if_exception
from tenacity.wait import wait_exponential, wait_random
from urllib3.exceptions import HTTPError

from arkor.client.http.cancellation import sleep
from arkor.client.http.errors import (
    invalid_response_error,
    is_certificate_error,
    parse_error,
    unavailable_error,
    was_never_sent,
)
from arkor.client.http.session import CredentialSafeSession, HeaderAuth
from arkor.client.http.urls import checked_url
from arkor.client.http.versions import report_deprecation
from arkor.errors import CloudApiError, CredentialsError, InvalidConfig
from arkor.files import atomic_writer
from arkor.protocol.codec import dumps

logger = logging.getLogger("arkor")

#: Seconds to connect, and between two bytes of an answer.
TIMEOUT = (10.0, 60.0)
#: Seconds within which a call is tried again, and within which it is where not even a connection comes about.
RETRY_BUDGET = 30.0
UNREACHABLE_BUDGET = 5.0

#: Seconds within which an answer has come to its end, and its bytes at most.
RESPONSE_SECONDS = 120.0
MAX_RESPONSE_BYTES = 512 * 1024 * 1024

_IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "DELETE"})


class Auth:
    """Where a backend is and which token opens it. This one never changes; others can renew themselves.

    `source` says, for a person, how this backend came to be chosen.
    """

    def __init__(self, base_url: str, token: str | None = None, *, source: str = "base_url") -> None:
        self.base_url = checked_url(base_url)
        self.token = checked_token(token)
        self.source = source

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base_url!r})"

    def prepare(self) -> None:
        """Called before each request: the place to renew what is about to expire."""

    def refresh(self) -> bool:
        """Called when nobody listens at the address; True when trying again makes sense."""
        return False

    def refresh_token(self, refused: str | None) -> bool:  # noqa: ARG002 - others have more than one
        """Called when that token was refused; True when there is another one to try."""
        return self.refresh()


def checked_token(token: str | None) -> str | None:
    """The token. Raises `CredentialsError` for one that cannot stand in a header, without showing it."""
    if token is not None and (not isinstance(token, str) or not token.isprintable() or " " in token or not token):
        raise CredentialsError("the token of the credentials is empty or has characters that no token has")
    return token


@frozen
class Call:
    """What is sent: `query` and `headers` as requests takes them, `raw_headers` unchecked, `timeout` in seconds.

    `upload` opens the file that is streamed as the body; it is called anew for each attempt.
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

    @property
    def idempotent(self) -> bool:
        return self.repeatable or self.method in _IDEMPOTENT

    def data(self) -> bytes | IO[bytes] | None:
        """The body to send. Raises `InvalidConfig` for what cannot be written as JSON, OSError for a file."""
        if self.upload is not None:
            return self.upload()
        return None if self.body is None else _encoded(self.body)

    def all_headers(self) -> dict[str, str]:
        if self.upload is not None:
            return {"Content-Type": "application/octet-stream", **self.headers}
        return dict(self.headers) if self.body is None else {"Content-Type": "application/json", **self.headers}


class HttpClient:
    """Calls to one backend; may be used from several threads, and in a process that was forked off.

    `retry_budget` is in seconds; 0 sends every call once.
    """

    def __init__(self, auth: Auth, *, retry_budget: float = RETRY_BUDGET) -> None:
        self.auth = auth
        self.retry_budget = retry_budget
        self._session: requests.Session | None = None
        self._process = 0

    def call(self, method: str, path: str, **rest: Any) -> dict[str, Any]:
        """Send a `Call`, and return the JSON object that comes back (empty when there is no body).

        Idempotent methods, and calls that are `repeatable`, are tried again after faults that may pass. Raises
        `CloudApiError`, or `BackendUnavailable` when there is no answer.
        """
        call = Call(method, path, **rest)

        def again(error: BaseException) -> bool:
            return was_never_sent(error) or (call.idempotent and _is_transient(error))

        attempts = Retrying(
            retry=retry_if_exception(again),
            wait=_retry_delay,
            stop=self._is_budget_spent,
            sleep=sleep,
            before_sleep=_log_retry,
            reraise=True,
        )
        uncertain: list[bool] = []
        try:
            return attempts(lambda: self._attempt(call, uncertain))
        except _CONNECTION_ERRORS as error:
            raise unavailable_error(self.auth.base_url, error) from error

    def _attempt(self, call: Call, uncertain: list[bool]) -> dict[str, Any]:
        """One of several; `uncertain` are about earlier ones that may have done it, though no answer said so."""
        try:
            return _json_object(self._send(call))
        except CloudApiError as error:
            if call.method == "DELETE" and error.status in (404, 410) and any(uncertain):
                return {}  # it was there when we began, and is gone
            uncertain.append(error.status == 408 or error.status >= 500)
            raise
        except _CONNECTION_ERRORS as error:
            uncertain.append(not was_never_sent(error))
            raise

    def open(self, method: str, path: str, **rest: Any) -> requests.Response:
        """Send a `Call` once, and return the answer with its body still to be read; the caller closes it.

        Raises `CloudApiError` for an error status, `BackendUnavailable` when there is no answer.
        """
        try:
            return self._send(Call(method, path, **rest))
        except _CONNECTION_ERRORS as error:
            raise unavailable_error(self.auth.base_url, error) from error

    def save(self, file: Path, method: str, path: str, **rest: Any) -> None:
        """Send a `Call` once and write the body of the answer to `file` atomically.

        Raises `CloudApiError`, `BackendUnavailable`, and OSError for a file that cannot be written.
        """
        with self.open(method, path, **rest) as response, atomic_writer(file) as target:
            try:
                for chunk in response.iter_content(1024 * 1024):
                    target.write(chunk)
            except _CONNECTION_ERRORS as error:
                raise unavailable_error(self.auth.base_url, error) from error

    def close(self) -> None:
        """Close the connections that are not in use; the next call opens a new one."""
        if self._session is not None and self._process == os.getpid():
            self._session.close()

    def _is_budget_spent(self, state: RetryCallState) -> bool:
        """Give up early where the wait itself would go beyond the budget."""
        error = _retry_error(state)
        unreachable = error is not None and was_never_sent(error)
        budget = min(self.retry_budget, UNREACHABLE_BUDGET) if unreachable else self.retry_budget
        return (state.seconds_since_start or 0.0) + _retry_delay(state) > budget

    def _send(self, call: Call) -> requests.Response:
        """One attempt, and one more where the access could be renewed."""
        self.auth.prepare()
        token = self.auth.token
        try:
            return self._send_once(call, token)
        except (requests.ConnectionError, CloudApiError) as error:
            refused = isinstance(error, CloudApiError) and error.status == 401
            refreshed = self.auth.refresh_token(token) if refused else was_never_sent(error) and self.auth.refresh()
            if not refreshed:
                raise
        return self._send_once(call, self.auth.token)

    def _send_once(self, call: Call, token: str | None) -> requests.Response:
        base_url = self.auth.base_url
        session = self._process_session()
        data = call.data()
        try:
            response = session.request(
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
        except UnicodeError:  # bytes of a command line that are no text
            raise InvalidConfig("request", "has characters that are no text, and cannot be sent") from None
        except OSError as error:  # a bundle of certificates that is not there
            raise unavailable_error(base_url, error) from error
        finally:
            if isinstance(data, io.IOBase):
                data.close()
        report_deprecation(response.headers)
        if not 200 <= response.status_code < 300:
            raise parse_error(response)
        return response

    def _process_session(self) -> requests.Session:
        """This process's session: after a fork, the parent's connections are left alone."""
        if self._session is None or self._process != os.getpid():
            self._session, self._process = CredentialSafeSession(), os.getpid()
        return self._session


# Bodies


def _encoded(body: Any) -> bytes:
    try:
        return dumps(body).encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidConfig("request", f"cannot be written as JSON: {error}") from None


def _json_object(response: requests.Response) -> dict[str, Any]:
    with response:
        content = _read_body(response)
    if not content.strip():
        return {}
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):
        kind = response.headers.get("Content-Type") or "no type"
        raise invalid_response_error(response, f"answered with something that is no JSON ({kind})") from None
    if not isinstance(data, dict):
        raise invalid_response_error(response, "answered with something that is no JSON object")
    return data


def _read_body(response: requests.Response) -> bytes:
    """The body, unless it is too long or trickles for too long."""
    chunks, size, deadline = [], 0, time.monotonic() + RESPONSE_SECONDS
    while chunk := response.raw.read1(1024 * 1024, decode_content=True):
        chunks.append(chunk)
        size += len(chunk)
        if size > MAX_RESPONSE_BYTES:
            raise invalid_response_error(response, f"answered with more than {MAX_RESPONSE_BYTES} bytes")
        if time.monotonic() > deadline:
            raise requests.ReadTimeout("the answer did not come to its end")
    return b"".join(chunks)


# Trying again

_CONNECTION_ERRORS = (requests.RequestException, HTTPError)


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, CloudApiError):
        return error.status in (408, 429) or error.status >= 500
    transient = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError, HTTPError)
    return isinstance(error, transient) and not is_certificate_error(error)


_jittered = wait_exponential(multiplier=0.25, max=8.0) + wait_random(0.0, 0.25)


def _retry_error(state: RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome is not None else None


def _retry_delay(state: RetryCallState) -> float:
    """What the backend asked for, else twice as long each time."""
    delay = getattr(_retry_error(state), "retry_after", None)
    return _jittered(state) if delay is None else delay + _jittered(state) / 10


def _log_retry(state: RetryCallState) -> None:
    error = _retry_error(state)
    fault = error if isinstance(error, CloudApiError) else type(error).__name__
    logger.warning("a call to the backend failed (%s); trying again in %.1f s", fault, state.upcoming_sleep)
