"""Run a check of a configuration and collect its event stream into a `Check`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import requests

from arkor.client.http.deadline import Deadline
from arkor.client.http.decoding import parse_object, read_chunks
from arkor.client.http.errors import stream_error
from arkor.client.http.session import close_connection
from arkor.client.streaming.sse import frames
from arkor.errors import BackendUnavailable, CloudApiError
from arkor.protocol.codec import from_wire
from arkor.results.check import Check, merge_reports

#: Receives the progress of the backend, in words.
ReportStatus = Callable[[str], None]


def request_check(
    open_stream: Callable[..., requests.Response], report: ReportStatus | None, abort_signal: threading.Event | None
) -> Check:
    """Run a check to its end and return its report; `open_stream` takes further headers."""
    deadline = Deadline(abort_signal or threading.Event(), timeout_note="the check was abandoned")
    headers = {"Accept": "text/event-stream"}
    try:
        response = deadline.call(lambda: open_stream(headers=headers), requests.Response.close)
    except CloudApiError as error:
        if error.status == 405 or (error.status == 404 and error.code != "project_not_found"):
            message = "this backend cannot check a run before it starts; use a dry run instead, which passes a few "
            message += "rows through every stage (dry_run=True, or arkor start --dry-run)"
            raise CloudApiError(error.status, "no_check", message) from None
        raise
    return _read(response, report, deadline)


def _read(response: requests.Response, report: ReportStatus | None, deadline: Deadline) -> Check:
    reports: list[dict[str, Any]] = []
    try:
        for frame in frames(read_chunks(response, deadline)):
            if frame.event == "end":
                return _build_check(reports)
            data = parse_object(frame.data)
            if frame.event == "check.failed":
                raise stream_error({**data, "error": data.get("error") or "the check failed"}, response)
            if frame.event == "check.found" and isinstance(data.get("found"), dict):
                reports.append(data["found"])
            elif frame.event == "check.progress" and report is not None:
                report(str(data.get("message") or ""))
    finally:
        close_connection(response)
    raise BackendUnavailable("the backend closed the connection before the end of the check", remedy="try again")


def _build_check(reports: list[dict[str, Any]]) -> Check:
    try:
        return from_wire(Check, merge_reports(reports))
    except (TypeError, ValueError, AttributeError):
        message = "the report of the check cannot be read; the backend may be newer than this arkor"
        raise CloudApiError(200, "bad_answer", message) from None
