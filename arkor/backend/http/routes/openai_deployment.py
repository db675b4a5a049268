"""What the OpenAI-compatible routes of a deployment share, at `/e/<slug>/v1`: keys, errors, storage.

A disabled deployment gives the same responses as one that does not exist. CORS headers are omitted,
so that pages of other sites cannot read a response: a key in a page would be public.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

from attrs import define, evolve, field, frozen
from sqlalchemy.exc import DBAPIError
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from arkor.backend.http.body import read_object
from arkor.backend.http.errors import ApiError, error_json, public_error, unauthorized
from arkor.backend.http.event_stream import EventStreamResponse
from arkor.backend.http.routes.chat import BODY_LIMIT, Choice, Generation, start
from arkor.backend.http.routes.deployments import resolve_target
from arkor.backend.http.schema import Schema
from arkor.backend.http.state import AppState, app_state
from arkor.backend.inference.messages import CompletionRequest, GenerationError
from arkor.errors import InvalidConfig
from arkor.protocol.deployments import Deployment
from arkor.protocol.model_target import ModelTarget

logger = logging.getLogger("arkor.backend")

#: What an unknown path below a deployment is answered with.
ROUTES_HINT = (
    "A deployment has /v1/chat/completions, /v1/completions, /v1/responses and /v1/models below /e/<slug>; "
    "the base URL of a client ends with /v1."
)

#: The errors of every route, for its description.
NO_KEY = {401: "The key is missing, wrong or revoked."}
NO_MODEL = {404: "The deployment does not exist, or its model no longer does.", 409: "The adapter cannot be used."}


# Answers


@frozen
class Call:
    """A request to a deployment with a checked key: its body, and the model that answers."""

    request: Request
    state: AppState
    deployment: Deployment
    key_id: str | None
    body: Mapping[str, Any]
    model: str
    adapter: str | None


async def read_call(request: Request, schema: Schema) -> Call:
    """Check the key, and read a body that matches the schema. Raises an error."""
    state, (deployment, key_id) = app_state(request), await authorize(request)
    body = await read_object(request, schema, BODY_LIMIT)
    model, adapter = await run_in_threadpool(_model_and_adapter, state, deployment)
    return Call(request, state, deployment, key_id, body, model, adapter)


async def answer(
    call: Call,
    build: Callable[[], Sequence[CompletionRequest]],
    whole: Callable[[Generation], Mapping[str, Any]],
    stream: Callable[[Generation, Conversation], AsyncGenerator[bytes, None]] | None,
    n: int | None = 1,
) -> Response:
    """Generate the completions and respond with a stream, or with `whole`; store the conversation.

    Raises what `build` and the generator raise.
    """
    conversation = Conversation(call.state, call.deployment, call.key_id, call.body)
    try:
        completions = [evolve(one, model=call.model, adapter=call.adapter) for one in await run_in_threadpool(build)]
        generation = await start(call.state.inference, completions, call.deployment.slug, n)
        conversation.generation = generation
        if stream is None:
            await generation.finish(call.request)
    except (ApiError, InvalidConfig, GenerationError) as error:
        conversation.error = error_json(public_error(error))
        await conversation.save()
        raise
    if stream is not None:
        return EventStreamResponse(stream(generation, conversation), conversation.close)
    return JSONResponse(whole(generation), background=BackgroundTask(conversation.save))


# Authorization


async def authorize(request: Request) -> tuple[Deployment, str | None]:
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

    def fail(self, error: GenerationError) -> Mapping[str, Any]:
        """Store the error of a stream, and return it for the client."""
        public = public_error(error)
        self.error = {**error_json(public), "type": "server_error", "status": public.status}
        return self.error

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
        choices = [
            {"message": {**choice.message, "content": choice.text}, "finish_reason": choice.finish_reason}
            for choice in (generation.choices if generation else [Choice(0)])
        ]
        return {
            "id": generation and generation.id,
            **choices[0],
            **({"choices": choices} if len(choices) > 1 else {}),
            "usage": generation and generation.usage,
            **({"error": self.error} if self.error else {}),
        }
