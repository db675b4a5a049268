"""Checks of a run before it is submitted."""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from arkor.backend.http.authentication import require_scope
from arkor.backend.http.body import read_object
from arkor.backend.http.event_stream import EventStreamResponse, open_stream
from arkor.backend.http.openapi import PROJECT, ResponseSpec, RouteTable
from arkor.backend.http.routes.jobs import (
    INVALID_CONFIG,
    TOO_MANY_STREAMS,
    parse_config,
    reject_unrunnable,
    split_token,
)
from arkor.backend.http.schema import EVENTS, object_schema
from arkor.backend.http.state import app_state
from arkor.backend.preflight.service import CheckRequest
from arkor.protocol.codec import to_wire
from arkor.protocol.jobs import JobConfig

CHECK_REQUEST = object_schema(config=JobConfig)

routes = RouteTable()

_EVENTS = "Server-sent events: `check.progress`, `check.found` and `check.failed`; the last one is `end`."


@routes.add(
    "POST",
    "/v1/jobs/check",
    PROJECT,
    body=CHECK_REQUEST,
    responses={200: ResponseSpec(_EVENTS, EVENTS, "text/event-stream")},
    errors={**INVALID_CONFIG, **TOO_MANY_STREAMS},
)
async def check(request: Request) -> Response:
    """Check a run without submitting it: its rows, their lengths, how long it will take."""
    scope, state = await require_scope(request), app_state(request)
    config, token = split_token(parse_config((await read_object(request, CHECK_REQUEST))["config"]))
    await run_in_threadpool(reject_unrunnable, state, scope.project, config)
    frames = state.check_service.frames(CheckRequest(to_wire(config), token))
    return EventStreamResponse(frames, open_stream(state.open_streams, scope.user))
