"""The OpenAI-compatible routes of a deployment, at `/e/<slug>/v1`.

A disabled deployment gives the same responses as one that does not exist. CORS headers are omitted,
so that pages of other sites cannot read a response: a key in a page would be public.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any

from attrs import define, evolve, field
from sqlalchemy.exc import DBAPIError
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from arkor.backend.http.authentication import NOTHING
from arkor.backend.http.body import read_object
from arkor.backend.http.errors import ApiError, unauthorized
from arkor.backend.http.event_stream import EventStreamResponse
from arkor.backend.http.openapi import ResponseSpec, RouteTable
from arkor.backend.http.routes.chat import (
    BODY_LIMIT,
    STREAM_END,
    UNAVAILABLE,
    Generation,
    build_completion,
    frame,
    start,
)
from arkor.backend.http.routes.deployments import resolve_target
from arkor.backend.http.routes.openai_format import CHAT_REQUEST, ERROR_SCHEMA, error_json, public_error, read_request
from arkor.backend.http.schema import EVENTS, TEXT, array_schema, object_schema
from arkor.backend.http.state import AppState, app_state
from arkor.backend.inference.messages import GenerationError
from arkor.errors import InvalidConfig
from arkor.formatting import parse_timestamp, quote
from arkor.protocol.deployments import Deployment
from arkor.protocol.model_target import ModelTarget

Endpoint = Callable[[Request], Awaitable[Response]]

logger = logging.getLogger("arkor.backend")

_MODEL = object_schema(id=TEXT, object={"const": "model"}, created={"type": "integer"}, owned_by=TEXT)
_NO_KEY = {401: "The key is missing, wrong or revoked."}

routes = RouteTable()


def _openai_errors(endpoint: Endpoint) -> Endpoint:
    """Return errors in OpenAI's shape."""

    @functools.wraps(endpoint)
    async def wrapped(request: Request) -> Response:
        try:
            return await endpoint(request)
        except (ApiError, InvalidConfig, GenerationError) as error:
            public = public_error(error)
            return JSONResponse({"error": error_json(public)}, public.status, public.headers)

    return wrapped


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
    errors={
        **_NO_KEY,
        **UNAVAILABLE,
        404: "The deployment does not exist, or its model no longer does.",
        409: "The adapter cannot be used.",
    },
    error_schema=ERROR_SCHEMA,
)
@_openai_errors
async def chat(request: Request) -> Response:
    """Create a chat completion, as OpenAI's clients request it."""
    state, (deployment, key_id) = app_state(request), await _authorize(request)
    body = await read_object(request, CHAT_REQUEST, BODY_LIMIT)
    model, folder = await run_in_threadpool(_model_and_adapter, state, deployment)
    asked = await run_in_threadpool(read_request, body, model)
    conversation = Conversation(state, deployment, key_id, body)
    try:
        completion = evolve(build_completion(asked.request), model=model, adapter=folder)
        generation = await start(state.inference, completion, deployment.slug)
        conversation.generation = generation
        if not asked.request.stream:
            whole = await generation.whole(request)
    except (ApiError, InvalidConfig, GenerationError) as error:
        conversation.error = error_json(public_error(error))
        await conversation.save()
        raise
    if asked.request.stream:
        frames = _frames(generation, conversation, include_usage=asked.include_usage)
        return EventStreamResponse(frames, conversation.close)
    return JSONResponse(whole, background=BackgroundTask(conversation.save))


async def _frames(
    generation: Generation, conversation: Conversation, *, include_usage: bool
) -> AsyncGenerator[bytes, None]:
    """Yield the frames as OpenAI's clients expect them: usage in a chunk of its own, on request."""
    try:
        async for chunk in generation.chunks():
            usage = chunk.pop("usage", None)
            yield frame({**chunk, "usage": None} if include_usage else chunk)
            if usage and include_usage:
                yield frame({**chunk, "choices": [], "usage": usage})
    except GenerationError as error:
        public = public_error(error)
        conversation.error = {**error_json(public), "type": "server_error", "status": public.status}
        yield frame({"error": conversation.error})
    yield STREAM_END


@routes.add(
    "GET /e/{slug}/v1/models",
    NOTHING,
    responses={200: ResponseSpec("A list of one.", object_schema(object={"const": "list"}, data=array_schema(_MODEL)))},
    errors=_NO_KEY,
    error_schema=ERROR_SCHEMA,
)
@_openai_errors
async def list_models(request: Request) -> Response:
    """List the model of the deployment, whose id is the slug; requests may use any name for it."""
    deployment, _ = await _authorize(request)
    return JSONResponse({"object": "list", "data": [_model_json(deployment)]})


@routes.add(
    "GET /e/{slug}/v1/models/{model}",
    NOTHING,
    responses={200: ResponseSpec("The model.", _MODEL)},
    errors=_NO_KEY,
    error_schema=ERROR_SCHEMA,
)
@_openai_errors
async def get_model(request: Request) -> Response:
    """Return the model of the deployment."""
    deployment, _ = await _authorize(request)
    name = request.path_params["model"]
    if name != deployment.slug:
        raise ApiError(404, f"The only model here is {deployment.slug!r}, not {quote(name)}.", "model_not_found")
    return JSONResponse(_model_json(deployment))


def _model_json(deployment: Deployment) -> dict[str, Any]:
    created = parse_timestamp(deployment.created_at)
    seconds = int(created.timestamp()) if created else 0
    return {"id": deployment.slug, "object": "model", "created": seconds, "owned_by": "arkor"}


# Authorization


async def _authorize(request: Request) -> tuple[Deployment, str | None]:
    """Return the deployment, and the id of the key that was sent if one is required.

    Raises a 404 for a deployment that does not exist or is disabled, and a 401 without the right
    key.
    """
    return await run_in_threadpool(_verify_key, app_state(request), request.path_params["slug"], request.headers)


def _verify_key(state: AppState, slug: str, headers: Headers) -> tuple[Deployment, str | None]:
    deployment = state.store.deployments.by_slug(slug)
    if deployment is None or not deployment.enabled:
        raise ApiError(404, "No deployment answers at this address.", "deployment_not_found")
    if deployment.auth_mode == "none":
        return deployment, None
    key_id = state.store.deployments.verify_key(deployment.id, _require_key(headers))
    if key_id is None:
        raise unauthorized("The key is not valid for this deployment: it is wrong, or revoked.", "invalid_api_key")
    return deployment, key_id


def _require_key(headers: Headers) -> str:
    """Return the one key that a request has. Raises a 401."""
    pairs = [value.strip().partition(" ") for value in headers.getlist("authorization")]
    keys = {token.strip() for kind, _, token in pairs if kind.lower() == "bearer"}
    keys = (keys | {value.strip() for value in headers.getlist("x-api-key")}) - {""}
    if not keys:
        remedy = "Send it as Authorization: Bearer <key>, or as x-api-key: <key>."
        raise unauthorized("This deployment requires a key.", "invalid_api_key", remedy)
    if len(keys) > 1:
        raise unauthorized("The request has more than one key.", "invalid_api_key", "Send one.")
    return keys.pop()


def _model_and_adapter(state: AppState, deployment: Deployment) -> tuple[str, str | None]:
    """Return the base model and the adapter's folder; details of an error go to the log only."""
    project, error = state.store.project_of_id(deployment.project_id), None
    if project is not None:
        try:
            return resolve_target(state, project, ModelTarget.parse(deployment.target))
        except (ApiError, InvalidConfig, GenerationError) as caught:
            error = caught
    logger.warning("The deployment %s cannot answer: %s", deployment.slug, error or "its project is gone")
    problem, remedy = "The model of this deployment no longer exists.", "Its owner can choose another one."
    raise ApiError(404, problem, "model_not_found", remedy=remedy)


# Conversations


@define
class Conversation:
    """A request and its response, stored as the deployment's retention allows."""

    _state: AppState
    _deployment: Deployment
    _key_id: str | None
    _request: Mapping[str, Any]
    generation: Generation | None = None
    error: Mapping[str, Any] | None = None
    _started_at: float = field(factory=time.monotonic)

    async def close(self) -> None:
        """End the generation and store the conversation."""
        if self.generation is not None:
            self.generation.close()
        await self.save()

    async def save(self) -> None:
        """Store the conversation unless retention is disabled; a full disk only logs a warning."""
        if self._deployment.run_retention_mode != "disabled":
            await run_in_threadpool(self._save)

    def _save(self) -> None:
        state, deployment = self._state, self._deployment
        entry = {
            "keyId": self._key_id,
            "target": deployment.target,
            "seconds": round(time.monotonic() - self._started_at, 3),
            "request": self._request,
            "answer": self._answer(),
        }
        try:
            state.conversations.append(lambda: state.store.deployments.get(deployment.id), entry)
        except (OSError, DBAPIError) as error:
            logger.warning("A conversation of %s could not be kept: %s", deployment.slug, getattr(error, "orig", error))

    def _answer(self) -> dict[str, Any]:
        """Return the message so far; without a `finish_reason` if it was interrupted."""
        generation = self.generation
        calls = generation.calls if generation else []
        return {
            "id": generation and generation.id,
            "message": {
                "role": "assistant",
                "content": generation.text if generation else "",
                **({"tool_calls": calls} if calls else {}),
            },
            "finish_reason": generation and generation.done and generation.done.finish_reason,
            "usage": generation and generation.usage,
            **({"error": self.error} if self.error else {}),
        }
