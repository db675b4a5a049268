"""Chat completions and the list of models of a deployment, at `/e/<slug>/v1`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from arkor.backend.http.authentication import NOTHING
from arkor.backend.http.errors import ApiError
from arkor.backend.http.openapi import ResponseSpec, RouteTable
from arkor.backend.http.routes.chat import (
    STREAM_END,
    UNAVAILABLE,
    Generation,
    build_completion,
    chat_chunks,
    chat_completion,
    frame,
)
from arkor.backend.http.routes.openai_deployment import (
    NO_KEY,
    NO_MODEL,
    Conversation,
    answer,
    authorize,
    read_call,
)
from arkor.backend.http.routes.openai_format import CHAT_REQUEST, ERROR_SCHEMA, read_request
from arkor.backend.http.schema import EVENTS, TEXT, array_schema, object_schema
from arkor.backend.inference.messages import GenerationError
from arkor.formatting import parse_timestamp, quote
from arkor.protocol.deployments import Deployment

_MODEL = object_schema(id=TEXT, object={"const": "model"}, created={"type": "integer"}, owned_by=TEXT)

routes = RouteTable()


@routes.add(
    "POST /e/{slug}/v1/chat/completions",
    NOTHING,
    body=CHAT_REQUEST,
    responses={
        200: ResponseSpec(
            "OpenAI's completion; with `stream: true` its chunks, ended by `data: [DONE]`.",
            {"type": "object", "required": ["id", "choices", "usage"]},
            alternatives={"text/event-stream": EVENTS},
        )
    },
    errors={**NO_KEY, **UNAVAILABLE, **NO_MODEL},
    error_schema=ERROR_SCHEMA,
)
async def chat(request: Request) -> Response:
    """Create a chat completion, as OpenAI's clients request it."""
    call = await read_call(request, CHAT_REQUEST)
    asked = await run_in_threadpool(read_request, call.body, call.model)

    def stream(generation: Generation, conversation: Conversation) -> AsyncGenerator[bytes, None]:
        return _frames(generation, conversation, include_usage=asked.include_usage)

    return await answer(
        call,
        lambda: [build_completion(asked.request)],
        chat_completion,
        stream if asked.request.stream else None,
        asked.request.n,
    )


async def _frames(
    generation: Generation, conversation: Conversation, *, include_usage: bool
) -> AsyncGenerator[bytes, None]:
    """Yield the frames as OpenAI's clients expect them: usage in a chunk of its own, on request."""
    try:
        async for chunk in chat_chunks(generation):
            usage = chunk.pop("usage", None)
            yield frame({**chunk, "usage": None} if include_usage else chunk)
            if usage and include_usage:
                yield frame({**chunk, "choices": [], "usage": usage})
    except GenerationError as error:
        yield frame({"error": conversation.fail(error)})
    yield STREAM_END


@routes.add(
    "GET /e/{slug}/v1/models",
    NOTHING,
    responses={200: ResponseSpec("A list of one.", object_schema(object={"const": "list"}, data=array_schema(_MODEL)))},
    errors=NO_KEY,
    error_schema=ERROR_SCHEMA,
)
async def list_models(request: Request) -> Response:
    """List the model of the deployment, whose id is the slug; requests may use any name for it."""
    deployment, _ = await authorize(request)
    return JSONResponse({"object": "list", "data": [_model_json(deployment)]})


@routes.add(
    "GET /e/{slug}/v1/models/{model}",
    NOTHING,
    responses={200: ResponseSpec("The model.", _MODEL)},
    errors=NO_KEY,
    error_schema=ERROR_SCHEMA,
)
async def get_model(request: Request) -> Response:
    """Return the model of the deployment."""
    deployment, _ = await authorize(request)
    name = request.path_params["model"]
    if name != deployment.slug:
        raise ApiError(404, f"The only model here is {deployment.slug!r}, not {quote(name)}.", "model_not_found")
    return JSONResponse(_model_json(deployment))


def _model_json(deployment: Deployment) -> dict[str, Any]:
    created = parse_timestamp(deployment.created_at)
    seconds = int(created.timestamp()) if created else 0
    return {"id": deployment.slug, "object": "model", "created": seconds, "owned_by": "arkor"}
