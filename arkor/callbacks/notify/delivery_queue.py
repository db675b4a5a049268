"""Brings messages to an address, on a thread of its own, so that whoever sends them need not wait.

The address is a secret: it is in no log, no `repr` and no error. What a message looks like is said in
`message_formats.py`.
"""

from __future__ import annotations

import atexit
import logging
import queue
import threading
import time
from typing import Any

import requests
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt

from arkor.client.http.errors import retry_after
from arkor.settings import VERSION

logger = logging.getLogger("arkor")

#: Statuses that may be another one when it is tried again.
_TRANSIENT_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})

#: Seconds before the second attempt, doubled for each one after it, and the longest pause, whatever a server asks for.
INITIAL_DELAY, MAX_DELAY = 0.5, 30.0

#: So many messages may wait; what is sent beyond them is dropped.
MAX_PENDING = 1000

#: A thread that has nothing to deliver for so many seconds ends.
IDLE_SECONDS = 5.0

_thread = threading.local()


def _hide_delivery_logs(_: logging.LogRecord) -> bool:
    """urllib3 notes the path of each request at DEBUG; here the path is the secret."""
    return not getattr(_thread, "delivers", False)


class DeliveryError(Exception):
    """Why a message did not get there, without naming the address; `retry_after` in seconds, where it was asked."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class TransientDeliveryError(DeliveryError):
    """Trying again may help."""


class DeliveryQueue:
    """Delivers to one address, in order. `name` stands for it in the log; `timeout` is in seconds."""

    def __init__(self, url: str, name: str, *, timeout: float, attempts: int) -> None:
        self._url = url
        self._name = name
        self._timeout = timeout
        self._attempts = attempts
        self._pending: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue(MAX_PENDING)
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._gave_up = False

    def __repr__(self) -> str:
        return f"Postman({self._name!r})"

    def send(self, label: str, body: dict[str, Any]) -> None:
        """Take a message and return at once; `label` names it in the log."""
        with self._lock:
            try:
                self._pending.put_nowait((label, body))
            except queue.Full:
                logger.warning("%s: the message %r was dropped, as too many wait already", self._name, label)
                return
            if self._thread is None or not self._thread.is_alive():  # there is none behind a fork
                self._thread = threading.Thread(target=self._deliver, name="arkor-notify", daemon=True)
                self._thread.start()
                atexit.register(self._flush_at_exit)

    def flush(self, seconds: float) -> bool:
        """Wait until all is delivered or given up, at most so long; whether it was."""
        with self._pending.all_tasks_done:
            delivered = self._pending.all_tasks_done.wait_for(lambda: not self._pending.unfinished_tasks, seconds)
        self._gave_up = not delivered
        return delivered

    def _flush_at_exit(self) -> None:
        """The process ends: whoever left `wait()` early did not flush."""
        if not self._gave_up:
            self.flush(self._timeout)

    def _deliver(self) -> None:
        _thread.delivers = True
        urllib3_logger = logging.getLogger("urllib3.connectionpool")
        if _hide_delivery_logs not in urllib3_logger.filters:
            urllib3_logger.addFilter(_hide_delivery_logs)
        while (message := self._next_message()) is not None:
            label, body = message
            try:
                self._retry(body)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is no reason to stop
                reason = error if isinstance(error, DeliveryError) else type(error).__name__
                logger.warning("%s: the message %r was not delivered: %s", self._name, label, reason)
            finally:
                self._pending.task_done()

    def _next_message(self) -> tuple[str, dict[str, Any]] | None:
        """The next message; None when there has been none for long, and the thread may go."""
        try:
            return self._pending.get(timeout=IDLE_SECONDS)
        except queue.Empty:
            pass
        with self._lock:
            if not self._pending.empty():
                return self._pending.get_nowait()
            self._thread = None
            atexit.unregister(self._flush_at_exit)
            return None

    def _retry(self, body: dict[str, Any]) -> None:
        attempts = Retrying(
            retry=retry_if_exception_type(TransientDeliveryError),
            stop=stop_after_attempt(self._attempts),
            wait=_retry_delay,
            sleep=time.sleep,
            reraise=True,
        )
        attempts(self._post, body)

    def _post(self, body: dict[str, Any]) -> None:
        """One attempt. Raises `TransientDeliveryError` or `DeliveryError`."""
        try:
            response = requests.post(
                self._url,
                json=body,
                headers={"User-Agent": f"arkor/{VERSION}"},
                auth=_no_auth,
                timeout=self._timeout,
                allow_redirects=False,
                stream=True,
            )
        except (requests.ConnectionError, requests.Timeout) as error:
            raise TransientDeliveryError(_reason(error)) from None
        except (requests.RequestException, ValueError) as error:
            raise DeliveryError(type(error).__name__) from None
        with response:
            _raise_for_status(response)


def _no_auth(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """No password of a `.netrc` is added."""
    return request


def _reason(error: requests.RequestException) -> str:
    return "no answer in time" if isinstance(error, requests.Timeout) else "no connection"


def _raise_for_status(response: requests.Response) -> None:
    """Raises when the message was not taken."""
    status = response.status_code
    if status in _TRANSIENT_STATUSES:
        raise TransientDeliveryError(f"the answer was {status}", retry_after(response.headers))
    if not 200 <= status < 300:
        raise DeliveryError(f"the answer was {status}")
    if "HTTP error 429" in _body_excerpt(response):  # how a Teams connector says it, with status 200
        raise TransientDeliveryError("the answer was 429")


def _body_excerpt(response: requests.Response) -> str:
    """The first words of the body, if they come."""
    try:
        return next(response.iter_content(512), b"").decode("utf-8", "replace")
    except requests.RequestException:
        return ""


def _retry_delay(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    retry_after = getattr(error, "retry_after", None)
    return min(retry_after or INITIAL_DELAY * 2.0 ** min(state.attempt_number - 1, 16), MAX_DELAY)
