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

from arkor.backend.http.openapi import EVENTS, NOTHING, TEXT, Answer, Problem, body_of, list_of, one_of, route
from arkor.backend.http.requests import Refusal, read_object, shown, unauthorized
from arkor.backend.http.routes.chat import BODY_LIMIT, completion_of, respond
from arkor.backend.http.routes.deployments import weights_of
from arkor.backend.http.routes.openai_format import (
    CHAT_REQUEST,
    Told,
    by_openais_names,
    error_json,
    read_request,
    retold,
)
from arkor.protocol.deployments import Deployment

Endpoint = Callable[[Request], Awaitable[Response]]

logger = logging.getLogger("arkor.backend")


def _in_openais_words(endpoint: Endpoint) -> Endpoint:
    """Errors in the shape that OpenAI's clients read."""

    @functools.wraps(endpoint)
    async def wrapped(request: Request) -> Response:
        try:
            return await endpoint(request)
        except Refusal as refusal:
            return JSONResponse(error_json(refusal), refusal.status, refusal.headers)

    return wrapped


@_in_openais_words
async def chat(request: Request) -> Response:
    """`POST /e/:slug/v1/chat/completions`."""
    visit = await admit(request)
    body = await read_object(request, BODY_LIMIT)
    model, folder = await run_in_threadpool(_weights, request.app.state, visit.deployment)
    asked = await run_in_threadpool(read_request, body, model)
    outward = _for_outsiders(request.app.state.home, model)
    conversation = Conversation(request.app.state, visit, body)
    try:
        completion = completion_of(asked.request, model, folder)
        answer = await respond(request, completion, visit.deployment.slug, stream=asked.request.stream)
    except Refusal as refusal:
        no = Refusal(refusal.status, outward(refusal.sentence), refusal.code, refusal.headers)
        conversation.told.error = error_json(no)["error"]
        await conversation.keep()
        raise no from None
    if isinstance(answer, StreamingResponse):
        return Retold(answer, conversation, include_usage=asked.include_usage, outward=outward)
    conversation.told.whole(json.loads(bytes(answer.body)))
    answer.background = BackgroundTask(conversation.keep)  # nobody waits for the disk
    return answer


@_in_openais_words
async def list_models(request: Request) -> Response:
    """`GET /e/:slug/v1/models`: the one that answers, whatever a request calls it."""
    visit = await admit(request)
    return JSONResponse({"object": "list", "data": [_model_json(visit.deployment)]})


@_in_openais_words
async def get_model(request: Request) -> Response:
    """`GET /e/:slug/v1/models/:model`."""
    deployment = (await admit(request)).deployment
    name = request.path_params["model"]
    if name != deployment.slug:
        raise Refusal(404, f"There is no model {shown(name)} here, only {deployment.slug!r}.", "model_not_found")
    return JSONResponse(_model_json(deployment))


def _model_json(deployment: Deployment) -> dict[str, Any]:
    created = datetime.fromisoformat(deployment.created_at.replace("Z", "+00:00"))
    return {"id": deployment.slug, "object": "model", "created": int(created.timestamp()), "owned_by": "arkor"}


def _for_outsiders(home: Path, model: str) -> Callable[[str], str]:
    """How an error is worded for callers, who need not know where things lie on this machine."""

    def outward(sentence: str) -> str:
        sentence = sentence.replace(f"{home}/", "")
        return by_openais_names(sentence.replace(model, "this model") if "/" in model else sentence)

    return outward


# Who may come in


@frozen
class Visit:
    """Somebody who may ask, and with which key, if one is needed."""

    deployment: Deployment
    key_id: str | None


async def admit(request: Request) -> Visit:
    """A 404 where nothing answers, a 401 without the right key."""
    return await run_in_threadpool(_admit, request.app.state, request.path_params["slug"], request.headers)


def _admit(state: State, slug: str, headers: Headers) -> Visit:
    deployment: Deployment | None = state.store.endpoints.at(slug)
    if deployment is None or not deployment.enabled:
        raise Refusal(404, "No deployment answers at this address.", "deployment_not_found")
    if deployment.auth_mode == "none":
        return Visit(deployment, None)
    key_id = state.store.endpoints.key_that_opens(deployment.id, the_key(headers))
    if key_id is None:
        raise unauthorized("This key does not open this deployment: it is wrong, or revoked.", "invalid_api_key")
    return Visit(deployment, key_id)


def the_key(headers: Headers) -> str:
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


def _weights(state: State, deployment: Deployment) -> tuple[str, str | None]:
    """What answers; a caller is not told which run it was that is gone, its owner is."""
    project = state.store.project_of_id(deployment.project_id)
    try:
        return weights_of(state, project, deployment.target)
    except Refusal as refusal:
        logger.warning("The deployment %s cannot answer: %s", deployment.slug, refusal.sentence)
        sentence = "The model of this deployment is not there any more; its owner can give it another one."
        raise Refusal(404, sentence, "model_not_found") from None


# What is kept of it


@define
class Conversation:
    """A request and what was answered, to be kept as the deployment says."""

    _state: State
    _visit: Visit
    _request: Mapping[str, Any]
    told: Told = field(factory=Told)
    _began: float = field(factory=time.monotonic)

    async def keep(self) -> None:
        """Write it down, unless it is not to be kept; an answer does not fail for want of room."""
        if self._visit.deployment.run_retention_mode != "disabled":
            await run_in_threadpool(self._keep)

    def _keep(self) -> None:
        state, deployment = self._state, self._visit.deployment
        seconds = round(time.monotonic() - self._began, 3)
        head = {"keyId": self._visit.key_id, "target": deployment.target, "seconds": seconds}
        entry = {**head, "request": self._request, "answer": self.told.to_json()}
        try:
            state.conversations.keep(lambda: state.store.endpoints.get(deployment.id), entry)
        except (OSError, DBAPIError) as error:
            logger.warning("A conversation of %s could not be kept: %s", deployment.slug, getattr(error, "orig", error))


class Retold(Response):
    """A stream in OpenAI's words that is kept when it has ended, however it did."""

    def __init__(
        self,
        answer: StreamingResponse,
        conversation: Conversation,
        *,
        include_usage: bool,
        outward: Callable[[str], str],
    ) -> None:
        super().__init__()
        told = retold(answer.body_iterator, conversation.told, include_usage=include_usage, outward=outward)
        answer.body_iterator = told
        self._answer = answer
        self._conversation = conversation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        try:
            await self._answer(scope, receive, send)
        finally:
            await self._conversation.keep()


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
_MODEL = body_of(id=TEXT, object={"const": "model"}, created={"type": "integer"}, owned_by=TEXT)
_NO_KEY = {401: "No key, or one that does not open this deployment."}

routes = [
    route(
        "POST",
        "/e/{slug}/v1/chat/completions",
        chat,
        NOTHING,
        "A chat completion, as OpenAI's clients ask for it.",
        body=CHAT_REQUEST,
        answers={
            200: Answer(
                "OpenAI's completion; with `stream: true` its chunks, which `data: [DONE]` ends.",
                {"type": "object", "required": ["id", "choices", "usage"]},
                others={"text/event-stream": EVENTS},
            )
        },
        errors={
            **_NO_KEY,
            404: "No deployment answers here, or its model is gone.",
            409: "The adapter cannot be used.",
            503: "There is not enough memory, or the process that answers has ended; ask again.",
        },
        errors_as=_PROBLEM,
    ),
    route(
        "GET",
        "/e/{slug}/v1/models",
        list_models,
        NOTHING,
        "The one model that answers here.",
        answers={200: Answer("A list of one.", body_of(object={"const": "list"}, data=list_of(_MODEL)))},
        errors=_NO_KEY,
        errors_as=_PROBLEM,
    ),
    route(
        "GET",
        "/e/{slug}/v1/models/{model}",
        get_model,
        NOTHING,
        "The one model that answers here.",
        answers={200: Answer("The model.", _MODEL)},
        errors=_NO_KEY,
        errors_as=_PROBLEM,
    ),
]
