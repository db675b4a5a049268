"""The public door of a deployment: OpenAI's chat completions at `/e/<slug>/v1`, for whoever has a key.

A deployment that is not there and one that is disabled look the same from outside. No page of another site may read
an answer (there are no CORS headers): a key in a page is a key given away.
"""

from __future__ import annotations

import functools
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from attrs import define, field, frozen
from sqlalchemy.exc import DBAPIError
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, State
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from arkor.backend.http.openapi import (
    EVENTS,
    NOTHING,
    TEXT,
    Problem,
    ResponseSpec,
    array_schema,
    object_schema,
    one_of,
    route,
)
from arkor.backend.http.requests import ApiError, quote, read_json_object, unauthorized
from arkor.backend.http.routes.chat import BODY_LIMIT, build_completion, respond
from arkor.backend.http.routes.deployments import resolve_target
from arkor.backend.http.routes.openai_format import (
    CHAT_REQUEST,
    OpenAIResponse,
    error_json,
    openai_frames,
    read_request,
    with_openai_names,
)
from arkor.protocol.deployments import Deployment

Endpoint = Callable[[Request], Awaitable[Response]]

logger = logging.getLogger("arkor.backend")


def _openai_errors(endpoint: Endpoint) -> Endpoint:
    """Errors in the shape that OpenAI's clients read."""

    @functools.wraps(endpoint)
    async def wrapped(request: Request) -> Response:
        try:
            return await endpoint(request)
        except ApiError as error:
            return JSONResponse(error_json(error), error.status, error.headers)

    return wrapped


@_openai_errors
async def chat(request: Request) -> Response:
    """`POST /e/:slug/v1/chat/completions`."""
    authorized = await authorize(request)
    body = await read_json_object(request, BODY_LIMIT)
    model, folder = await run_in_threadpool(_model_and_adapter, request.app.state, authorized.deployment)
    chat_request = await run_in_threadpool(read_request, body, model)
    redact = _redactor(request.app.state.home, model)
    conversation = ConversationRecord(request.app.state, authorized, body)
    try:
        completion = build_completion(chat_request.request, model, folder)
        response = await respond(request, completion, authorized.deployment.slug, stream=chat_request.request.stream)
    except ApiError as error:
        redacted = ApiError(error.status, redact(error.sentence), error.code, error.headers)
        conversation.output.error = error_json(redacted)["error"]
        await conversation.save()
        raise redacted from None
    if isinstance(response, StreamingResponse):
        return OpenAIStreamResponse(response, conversation, include_usage=chat_request.include_usage, redact=redact)
    conversation.output.add_completion(json.loads(bytes(response.body)))
    response.background = BackgroundTask(conversation.save)  # nobody waits for the disk
    return response


@_openai_errors
async def list_models(request: Request) -> Response:
    """`GET /e/:slug/v1/models`: the one that answers, whatever a request calls it."""
    authorized = await authorize(request)
    return JSONResponse({"object": "list", "data": [_model_json(authorized.deployment)]})


@_openai_errors
async def get_model(request: Request) -> Response:
    """`GET /e/:slug/v1/models/:model`."""
    deployment = (await authorize(request)).deployment
    name = request.path_params["model"]
    if name != deployment.slug:
        raise ApiError(404, f"There is no model {quote(name)} here, only {deployment.slug!r}.", "model_not_found")
    return JSONResponse(_model_json(deployment))


def _model_json(deployment: Deployment) -> dict[str, Any]:
    created = datetime.fromisoformat(deployment.created_at.replace("Z", "+00:00"))
    return {"id": deployment.slug, "object": "model", "created": int(created.timestamp()), "owned_by": "arkor"}


def _redactor(home: Path, model: str) -> Callable[[str], str]:
    """How an error is worded for callers, who need not know where things lie on this machine."""

    def redact(sentence: str) -> str:
        sentence = sentence.replace(f"{home}/", "")
        return with_openai_names(sentence.replace(model, "this model") if "/" in model else sentence)

    return redact


# Who may come in


@frozen
class AuthorizedRequest:
    """Somebody who may ask, and with which key, if one is needed."""

    deployment: Deployment
    key_id: str | None


async def authorize(request: Request) -> AuthorizedRequest:
    """A 404 where nothing answers, a 401 without the right key."""
    return await run_in_threadpool(_authorize, request.app.state, request.path_params["slug"], request.headers)


def _authorize(state: State, slug: str, headers: Headers) -> AuthorizedRequest:
    deployment: Deployment | None = state.store.deployments.by_slug(slug)
    if deployment is None or not deployment.enabled:
        raise ApiError(404, "No deployment answers at this address.", "deployment_not_found")
    if deployment.auth_mode == "none":
        return AuthorizedRequest(deployment, None)
    key_id = state.store.deployments.verify_key(deployment.id, require_key(headers))
    if key_id is None:
        raise unauthorized("This key does not open this deployment: it is wrong, or revoked.", "invalid_api_key")
    return AuthorizedRequest(deployment, key_id)


def require_key(headers: Headers) -> str:
    """The one key that a request brings, else a 401."""
    pairs = [value.strip().partition(" ") for value in headers.getlist("authorization")]
    keys = {token.strip() for kind, _, token in pairs if kind.lower() == "bearer"}
    keys = (keys | {value.strip() for value in headers.getlist("x-api-key")}) - {""}
    if not keys:
        sentence = "This deployment needs a key: Authorization: Bearer <key>, or x-api-key: <key>."
        raise unauthorized(sentence, "invalid_api_key")
    if len(keys) > 1:
        raise unauthorized("The request brings more than one key; send one.", "invalid_api_key")
    return keys.pop()


def _model_and_adapter(state: State, deployment: Deployment) -> tuple[str, str | None]:
    """What answers; a caller is not told which run it was that is gone, its owner is."""
    project = state.store.project_of_id(deployment.project_id)
    try:
        return resolve_target(state, project, deployment.target)
    except ApiError as error:
        logger.warning("The deployment %s cannot answer: %s", deployment.slug, error.sentence)
        sentence = "The model of this deployment is not there any more; its owner can give it another one."
        raise ApiError(404, sentence, "model_not_found") from None


# What is kept of it


@define
class ConversationRecord:
    """A request and what was answered, to be kept as the deployment says."""

    _state: State
    _authorized: AuthorizedRequest
    _request: Mapping[str, Any]
    output: OpenAIResponse = field(factory=OpenAIResponse)
    _started_at: float = field(factory=time.monotonic)

    async def save(self) -> None:
        """Write it down, unless it is not to be kept; an answer does not fail for want of room."""
        if self._authorized.deployment.run_retention_mode != "disabled":
            await run_in_threadpool(self._save)

    def _save(self) -> None:
        state, deployment = self._state, self._authorized.deployment
        seconds = round(time.monotonic() - self._started_at, 3)
        head = {"keyId": self._authorized.key_id, "target": deployment.target, "seconds": seconds}
        entry = {**head, "request": self._request, "answer": self.output.to_json()}
        try:
            state.conversations.append(lambda: state.store.deployments.get(deployment.id), entry)
        except (OSError, DBAPIError) as error:
            logger.warning("A conversation of %s could not be kept: %s", deployment.slug, getattr(error, "orig", error))


class OpenAIStreamResponse(Response):
    """A stream in OpenAI's words that is kept when it has ended, however it did."""

    def __init__(
        self,
        response: StreamingResponse,
        conversation: ConversationRecord,
        *,
        include_usage: bool,
        redact: Callable[[str], str],
    ) -> None:
        super().__init__()
        frames = openai_frames(response.body_iterator, conversation.output, include_usage=include_usage, redact=redact)
        response.body_iterator = frames
        self._response = response
        self._conversation = conversation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        try:
            await self._response(scope, receive, send)
        finally:
            await self._conversation.save()


_ERROR = {
    "type": "object",
    "properties": {
        "message": TEXT,
        "type": TEXT,
        "param": {"type": ["string", "null"]},
        "code": {"type": ["string", "null"]},
    },
    "required": ["message", "type", "param", "code"],
}
_PROBLEM = one_of({"type": "object", "properties": {"error": _ERROR}, "required": ["error"]}, Problem)
_MODEL = object_schema(id=TEXT, object={"const": "model"}, created={"type": "integer"}, owned_by=TEXT)
_NO_KEY = {401: "No key, or one that does not open this deployment."}

routes = [
    route(
        "POST",
        "/e/{slug}/v1/chat/completions",
        chat,
        NOTHING,
        "A chat completion, as OpenAI's clients ask for it.",
        body=CHAT_REQUEST,
        responses={
            200: ResponseSpec(
                "OpenAI's completion; with `stream: true` its chunks, which `data: [DONE]` ends.",
                {"type": "object", "required": ["id", "choices", "usage"]},
                alternatives={"text/event-stream": EVENTS},
            )
        },
        errors={
            **_NO_KEY,
            404: "No deployment answers here, or its model is gone.",
            409: "The adapter cannot be used.",
            503: "There is not enough memory, or the process that answers has ended; ask again.",
        },
        error_schema=_PROBLEM,
    ),
    route(
        "GET",
        "/e/{slug}/v1/models",
        list_models,
        NOTHING,
        "The one model that answers here.",
        responses={
            200: ResponseSpec("A list of one.", object_schema(object={"const": "list"}, data=array_schema(_MODEL)))
        },
        errors=_NO_KEY,
        error_schema=_PROBLEM,
    ),
    route(
        "GET",
        "/e/{slug}/v1/models/{model}",
        get_model,
        NOTHING,
        "The one model that answers here.",
        responses={200: ResponseSpec("The model.", _MODEL)},
        errors=_NO_KEY,
        error_schema=_PROBLEM,
    ),
]
