"""Deliver messages to a webhook on a background thread; its URL, a secret, is never shown."""

from __future__ import annotations

import atexit
import logging
import queue
import threading
from typing import Any

import requests
from tenacity import stop_after_attempt

from arkor.client.http.errors import retry_after
from arkor.errors import is_transient
from arkor.protocol.retry import retrying
from arkor.protocol.transport import HeaderAuth
from arkor.settings import VERSION

logger = logging.getLogger("arkor")

#: Seconds before the second attempt, doubled for each further one, and the maximum, which also
#: limits `Retry-After`.
INITIAL_DELAY, MAX_DELAY = 0.5, 30.0

#: The number of messages that may wait; further ones are dropped.
MAX_PENDING = 1000

#: The thread ends after this many seconds without a message.
IDLE_SECONDS = 5.0

_thread = threading.local()


def _hide_delivery_logs(_: logging.LogRecord) -> bool:
    """Drop urllib3's DEBUG records of the delivery thread: they contain the path, a secret."""
    return not getattr(_thread, "delivers", False)


class DeliveryError(Exception):
    """The reason why a message was not delivered, without the URL; `retry_after` in seconds."""

    def __init__(self, reason: str, *, transient: bool = False, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.transient = transient
        self.retry_after = retry_after


class DeliveryQueue:
    """Delivers messages to one URL in order. `name` stands for it in logs; `timeout` in seconds."""

    def __init__(self, url: str, name: str, *, timeout: float, attempts: int) -> None:
        self._url = url
        self._name = name
        self._timeout = timeout
        self._attempts = attempts
        self._pending: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue(MAX_PENDING)
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._gave_up = False

    def send(self, label: str, body: dict[str, Any]) -> None:
        """Queue a message and return at once; `label` names it in logs."""
        with self._lock:
            try:
                self._pending.put_nowait((label, body))
            except queue.Full:
                logger.warning("%s: dropped the message %r, since %d are waiting", self._name, label, MAX_PENDING)
                return
            if self._thread is None or not self._thread.is_alive():  # not in a fork
                self._thread = threading.Thread(target=self._deliver, name="arkor-notify", daemon=True)
                self._thread.start()
                atexit.register(self._flush_at_exit)

    def flush(self, seconds: float) -> bool:
        """Wait until each message is delivered or given up. Return False after `seconds`."""
        with self._pending.all_tasks_done:
            delivered = self._pending.all_tasks_done.wait_for(lambda: not self._pending.unfinished_tasks, seconds)
        self._gave_up = not delivered
        return delivered

    def _flush_at_exit(self) -> None:
        """Flush at the end of the process, for a `wait()` that was left early and did not flush."""
        if not self._gave_up:
            self.flush(self._timeout)

    def _deliver(self) -> None:
        _thread.delivers = True
        urllib3_logger = logging.getLogger("urllib3.connectionpool")
        if _hide_delivery_logs not in urllib3_logger.filters:
            urllib3_logger.addFilter(_hide_delivery_logs)
        stop = stop_after_attempt(self._attempts)
        attempts = retrying(lambda error: getattr(error, "transient", False), _retry_delay, stop)
        while (message := self._next_message()) is not None:
            label, body = message
            try:
                attempts(self._post, body)
            except Exception as error:  # noqa: BLE001 - no failure may end the thread
                reason = error if isinstance(error, DeliveryError) else type(error).__name__
                logger.warning("%s: the message %r was not delivered: %s", self._name, label, reason)
            finally:
                self._pending.task_done()

    def _next_message(self) -> tuple[str, dict[str, Any]] | None:
        """Return the next message; None after `IDLE_SECONDS` without one, to end the thread."""
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

    def _post(self, body: dict[str, Any]) -> None:
        try:
            response = requests.post(
                self._url,
                json=body,
                headers={"User-Agent": f"arkor/{VERSION}"},
                auth=HeaderAuth(),  # keeps requests from sending a password of `.netrc`
                timeout=self._timeout,
                allow_redirects=False,
                stream=True,
            )
        except requests.Timeout:
            raise DeliveryError("the server did not respond in time", transient=True) from None
        except requests.ConnectionError:
            raise DeliveryError("cannot connect to the server", transient=True) from None
        except (requests.RequestException, ValueError) as error:
            raise DeliveryError(type(error).__name__) from None
        response.close()
        if not 200 <= (status := response.status_code) < 300:
            reason, after = f"the server answered with status {status}", retry_after(response.headers)
            raise DeliveryError(reason, transient=is_transient(status), retry_after=after)


def _retry_delay(error: BaseException, attempt: int) -> float:
    delay = getattr(error, "retry_after", None) or INITIAL_DELAY * 2.0 ** min(attempt - 1, 16)
    return float(min(delay, MAX_DELAY))
