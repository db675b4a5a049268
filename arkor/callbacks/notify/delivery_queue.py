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
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})

#: Seconds before the second attempt, doubled for each one after it, and the longest pause, whatever a server asks for.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0

#: So many messages may wait; what is sent beyond them is dropped.
MOST_WAITING = 1000

#: A thread that has nothing to deliver for so many seconds ends.
IDLE_SECONDS = 5.0

_thread = threading.local()


def _not_from_here(_: logging.LogRecord) -> bool:
    """urllib3 notes the path of each request at DEBUG; here the path is the secret."""
    return not getattr(_thread, "delivers", False)


class _Undelivered(Exception):
    """Why a message did not get there, without naming the address; `retry_after` in seconds, where it was asked."""

    def __init__(self, why: str, retry_after: float | None = None) -> None:
        super().__init__(why)
        self.retry_after = retry_after


class _ForNow(_Undelivered):
    """Trying again may help."""


class Postman:
    """Delivers to one address, in order. `name` stands for it in the log; `timeout` is in seconds."""

    def __init__(self, url: str, name: str, *, timeout: float, attempts: int) -> None:
        self._url = url
        self._name = name
        self._timeout = timeout
        self._attempts = attempts
        self._waiting: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue(MOST_WAITING)
        self._thread: threading.Thread | None = None
        self._changing = threading.Lock()
        self._gave_up = False

    def __repr__(self) -> str:
        return f"Postman({self._name!r})"

    def send(self, what: str, body: dict[str, Any]) -> None:
        """Take a message and return at once; `what` names it in the log."""
        with self._changing:
            try:
                self._waiting.put_nowait((what, body))
            except queue.Full:
                logger.warning("%s: the message %r was dropped, as too many wait already", self._name, what)
                return
            if self._thread is None or not self._thread.is_alive():  # there is none behind a fork
                self._thread = threading.Thread(target=self._deliver, name="arkor-notify", daemon=True)
                self._thread.start()
                atexit.register(self._leave)

    def flush(self, seconds: float) -> bool:
        """Wait until all is delivered or given up, at most so long; whether it was."""
        with self._waiting.all_tasks_done:
            through = self._waiting.all_tasks_done.wait_for(lambda: not self._waiting.unfinished_tasks, seconds)
        self._gave_up = not through
        return through

    def _leave(self) -> None:
        """The process ends: whoever left `wait()` early did not flush."""
        if not self._gave_up:
            self.flush(self._timeout)

    def _deliver(self) -> None:
        _thread.delivers = True
        noisy = logging.getLogger("urllib3.connectionpool")
        if _not_from_here not in noisy.filters:
            noisy.addFilter(_not_from_here)
        while (message := self._next()) is not None:
            what, body = message
            try:
                self._insist(body)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is no reason to stop
                why = error if isinstance(error, _Undelivered) else type(error).__name__
                logger.warning("%s: the message %r was not delivered: %s", self._name, what, why)
            finally:
                self._waiting.task_done()

    def _next(self) -> tuple[str, dict[str, Any]] | None:
        """The next message; None when there has been none for long, and the thread may go."""
        try:
            return self._waiting.get(timeout=IDLE_SECONDS)
        except queue.Empty:
            pass
        with self._changing:
            if not self._waiting.empty():
                return self._waiting.get_nowait()
            self._thread = None
            atexit.unregister(self._leave)
            return None

    def _insist(self, body: dict[str, Any]) -> None:
        attempts = Retrying(
            retry=retry_if_exception_type(_ForNow),
            stop=stop_after_attempt(self._attempts),
            wait=_pause,
            sleep=time.sleep,
            reraise=True,
        )
        attempts(self._post, body)

    def _post(self, body: dict[str, Any]) -> None:
        """One attempt. Raises `_ForNow` or `_Undelivered`."""
        try:
            answer = requests.post(
                self._url,
                json=body,
                headers={"User-Agent": f"arkor/{VERSION}"},
                auth=_as_it_is,
                timeout=self._timeout,
                allow_redirects=False,
                stream=True,
            )
        except (requests.ConnectionError, requests.Timeout) as error:
            raise _ForNow(_reason(error)) from None
        except (requests.RequestException, ValueError) as error:
            raise _Undelivered(type(error).__name__) from None
        with answer:
            _judge(answer)


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """No password of a `.netrc` is added."""
    return request


def _reason(error: requests.RequestException) -> str:
    return "no answer in time" if isinstance(error, requests.Timeout) else "no connection"


def _judge(answer: requests.Response) -> None:
    """Raises when the message was not taken."""
    status = answer.status_code
    if status in _PASSING:
        raise _ForNow(f"the answer was {status}", retry_after(answer.headers))
    if not 200 <= status < 300:
        raise _Undelivered(f"the answer was {status}")
    if "HTTP error 429" in _beginning(answer):  # how a Teams connector says it, with status 200
        raise _ForNow("the answer was 429")


def _beginning(answer: requests.Response) -> str:
    """The first words of the body, if they come."""
    try:
        return next(answer.iter_content(512), b"").decode("utf-8", "replace")
    except requests.RequestException:
        return ""


def _pause(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = getattr(error, "retry_after", None)
    return min(asked or FIRST_PAUSE * 2.0 ** min(state.attempt_number - 1, 16), LONGEST_PAUSE)
