"""Checks: a look at a run before it is submitted."""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from arkor.backend.http.openapi import EVENTS, PROJECT, ResponseSpec, field_names, object_schema, route
from arkor.backend.http.requests import check_fields, read_json_object, require_scope
from arkor.backend.http.routes.jobs import (
    EventStreamResponse,
    checked_config,
    open_stream,
    reject_unrunnable,
    split_token,
)
from arkor.backend.preflight.service import CheckRequest
from arkor.protocol.codec import to_wire
from arkor.protocol.jobs import JobConfig

CHECK_REQUEST = object_schema(config=JobConfig)


async def check(request: Request) -> Response:
    """`POST /v1/jobs/check`: what is found, as events, while a process looks."""
    scope = await require_scope(request)
    body = await read_json_object(request)
    check_fields(body, *field_names(CHECK_REQUEST))
    config, token = split_token(checked_config(body["config"]))
    state = request.app.state
    await run_in_threadpool(reject_unrunnable, state, scope.project, config)
    frames = state.check_service.frames(CheckRequest(to_wire(config), token))
    return EventStreamResponse(frames, open_stream(state.streams, scope.user))


routes = [
    route(
        "POST",
        "/v1/jobs/check",
        check,
        PROJECT,
        "A look at a run before it is submitted: its rows, its lengths, how long it will take.",
        body=CHECK_REQUEST,
        responses={
            200: ResponseSpec(
                "Server-sent events: `check.progress`, `check.found` and `check.failed`; after the last comes `end`.",
                EVENTS,
                "text/event-stream",
            )
        },
        errors={400: "The run cannot work.", 429: "Too many streams are open; `Retry-After` says when to come back."},
    )
]
