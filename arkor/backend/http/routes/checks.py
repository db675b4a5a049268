"""Checks: a look at a run before it is submitted."""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from arkor.backend.http.openapi import EVENTS, PROJECT, Answer, body_of, fields_of, route
from arkor.backend.http.requests import check_fields, read_object, require_scope
from arkor.backend.http.routes.jobs import EventStream, checked_config, enter, refuse_hopeless, split_token
from arkor.backend.preflight.service import Asked
from arkor.protocol.codec import to_wire
from arkor.protocol.jobs import JobConfig

WANTED = body_of(config=JobConfig)


async def check(request: Request) -> Response:
    """`POST /v1/jobs/check`: what is found, as events, while a process looks."""
    scope = await require_scope(request)
    body = await read_object(request)
    check_fields(body, *fields_of(WANTED))
    config, token = split_token(checked_config(body["config"]))
    state = request.app.state
    await run_in_threadpool(refuse_hopeless, state, scope.project, config)
    frames = state.checking.frames(Asked(to_wire(config), token))
    return EventStream(frames, enter(state.streams, scope.user))


routes = [
    route(
        "POST",
        "/v1/jobs/check",
        check,
        PROJECT,
        "A look at a run before it is submitted: its rows, its lengths, how long it will take.",
        body=WANTED,
        answers={
            200: Answer(
                "Server-sent events: `check.progress`, `check.found` and `check.failed`; after the last comes `end`.",
                EVENTS,
                "text/event-stream",
            )
        },
        errors={400: "The run cannot work.", 429: "Too many streams are open; `Retry-After` says when to come back."},
    )
]
