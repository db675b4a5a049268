"""The playground: chat with one model or two, side by side; the same request as code."""

from __future__ import annotations

import json

import requests
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from arkor.client.api import CloudApiClient
from arkor.errors import ArkorError, CloudApiError, InvalidConfig
from arkor.protocol.chat import InferenceRequest
from arkor.protocol.codec import from_wire
from arkor.protocol.model_target import ModelTarget
from arkor.settings import STARTER_MODEL
from arkor.studio import model_selection as models
from arkor.studio import snippets
from arkor.studio.backend_client import client_of
from arkor.studio.rendering import page
from arkor.studio.run_index import Query
from arkor.studio.stream_proxy import proxy_answer

_MAX_RUNS, _MAX_MODELS = 40, 6


def playground(request: Request) -> Response:
    """`GET /playground`: `run`, `step` and `model` choose a model, `run2` and so on a second."""
    client = client_of(request)
    runs = request.app.state.run_index.runs()
    first = models.parse_option(client, request.query_params) or models.latest_option(runs, completed=False)
    second = models.parse_option(client, request.query_params, "2")
    scope = client.scope
    project = f"{scope.org_slug}/{scope.project_slug}" if scope else ""
    return page("playground.html", first=first, second=second, project=project)


def choices(request: Request) -> Response:
    """`GET /parts/choices`: the runs and base models whose name, model or id contains `q`."""
    query = Query.of(request.query_params)
    runs = request.app.state.run_index.runs()
    found = query.apply(runs)
    used = (str(job.config.model) for job in runs if getattr(job.config, "model", None))
    names = [name for name in dict.fromkeys([STARTER_MODEL, *used]) if query.text.casefold() in name.casefold()]
    return page(
        "parts/choices.html",
        text=query.text,
        runs=found[:_MAX_RUNS],
        more=max(0, len(found) - _MAX_RUNS),
        models=names[:_MAX_MODELS],
    )


async def answer(request: Request) -> Response:
    """`POST /streams/answers`: stream an answer; takes the body of `POST /v1/inference/chat`."""
    inference_request = _parse_request(await request.body())

    def call() -> requests.Response:
        try:
            return client_of(request).chat(inference_request).raw
        except CloudApiError as error:
            if not models.is_unsupported_route(error):
                raise
            raise ArkorError(
                f"This backend does not know the model, or does not support chat ({error.message})."
            ) from error

    return await proxy_answer(request, call)


def _parse_request(body: bytes) -> InferenceRequest:
    try:
        inference_request = from_wire(InferenceRequest, json.loads(body))
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise InvalidConfig("request", "must be a JSON object with `messages`") from None
    inference_request.check()
    return inference_request


async def code(request: Request) -> Response:
    """`POST /parts/code`: the same request as code; nothing is sent to the model."""
    inference_request = _parse_request(await request.body())
    return await run_in_threadpool(lambda: _code(client_of(request), inference_request))


def _code(client: CloudApiClient, request: InferenceRequest) -> Response:
    target = ModelTarget(request.base_model, request.adapter)
    endpoint = models.find_endpoint(client, target)
    address = models.address_of(client, endpoint) if endpoint else None
    published = []
    if endpoint and address:
        key = None if endpoint.auth_mode == "none" else snippets.KEY
        published = snippets.endpoint_snippets(address, endpoint.slug, request, key=key)
    own = snippets.backend_snippets(client, request)
    option = models.ModelOption(target)
    publish = {"run": option.name, "step": option.step} if target.adapter else {"model": option.name}
    return page("parts/code.html", own=own, published=published, endpoint=endpoint, publish=publish)


routes = [
    Route("/playground", playground, methods=["GET"]),
    Route("/parts/choices", choices, methods=["GET"]),
    Route("/parts/code", code, methods=["POST"]),
    Route("/streams/answers", answer, methods=["POST"]),
]
