"""The events of a check, as they come → one `Check`.

How a check is asked for is in `client/api.py`, what it finds in `arkor.protocol.checks`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.client import HTTPException
from typing import Any

import requests
from urllib3.exceptions import HTTPError

from arkor.client.chat_response import close_connection
from arkor.client.http.deadline import Deadline
from arkor.client.http.errors import unavailable_error, without_token
from arkor.client.streaming.sse import frames
from arkor.errors import BackendUnavailable, CloudApiError
from arkor.protocol.codec import from_wire
from arkor.results.check import Check, merge_reports

#: Hears what the backend is at, in words for a person.
ReportStatus = Callable[[str], None]

_CHUNK_BYTES = 64 * 1024


def request_check(
    open_stream: Callable[..., requests.Response], report: ReportStatus | None, abort_signal: threading.Event | None
) -> Check:
    """Ask, wait for the end, and return all that was found; `open_stream` takes further headers.

    Raises `CloudApiError` for what the backend reports, `BackendUnavailable` where its answer breaks off,
    `TrainerAborted` once the signal is set.
    """
    deadline = Deadline(abort_signal or threading.Event(), timeout_note="the check was not waited for")
    headers = {"Accept": "text/event-stream"}
    try:
        response = deadline.call(lambda: open_stream(headers=headers), requests.Response.close)
    except CloudApiError as error:
        raise _unsupported(error) or error from None
    return _read(response, report, deadline)


def _unsupported(error: CloudApiError) -> CloudApiError | None:
    """Where a backend has no such route: a way round."""
    if error.status != 405 and (error.status != 404 or error.code == "project_not_found"):
        return None
    sentence = "this backend cannot look at a run before it is started. A dry run (dry_run=True, or arkor start "
    return CloudApiError(error.status, "no_check", f"{sentence}--dry-run) tries the whole way with a few rows instead")


def _read(response: requests.Response, report: ReportStatus | None, deadline: Deadline) -> Check:
    found: list[dict[str, Any]] = []
    try:
        for frame in frames(_chunks(response, deadline)):
            if frame.event == "end":
                return _build_check(found)
            data = _object(frame.data)
            if frame.event == "check.failed":
                raise _failure(data, response)
            if frame.event == "check.found" and isinstance(data.get("found"), dict):
                found.append(data["found"])
            elif frame.event == "check.progress" and report is not None:
                report(str(data.get("message") or ""))
    finally:
        close_connection(response)
    raise BackendUnavailable("the backend broke off the check before its end; ask again")


def _build_check(found: list[dict[str, Any]]) -> Check:
    try:
        return from_wire(Check, merge_reports(found))
    except (TypeError, ValueError, AttributeError):
        raise CloudApiError(200, "bad_answer", "what the backend found cannot be understood; is it newer?") from None


def _failure(data: dict[str, Any], response: requests.Response) -> CloudApiError:
    status = data.get("status")
    message = without_token(str(data.get("error") or "the check failed"), response.request)
    return CloudApiError(status if type(status) is int else 500, str(data.get("code") or "") or None, message)


def _object(text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _chunks(response: requests.Response, deadline: Deadline) -> Iterator[bytes]:
    try:
        while chunk := deadline.call(lambda: response.raw.read1(_CHUNK_BYTES, decode_content=True)):
            yield chunk
    except (OSError, HTTPException, HTTPError) as error:
        raise unavailable_error(response.url.split("/v1/", 1)[0], error) from error
