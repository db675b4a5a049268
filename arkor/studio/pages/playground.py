"""The playground: chat with one model or two, side by side; the same request as code."""

from __future__ import annotations

import json
from collections.abc import Callable

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
from arkor.studio import snippets
from arkor.studio.backend_client import BackendClient
from arkor.studio.model_selection import ModelOption, address_of, find_endpoint, is_unsupported_route, parse_option
from arkor.studio.rendering import page
from arkor.studio.run_index import Query, RunIndex
from arkor.studio.stream_proxy import proxy_answer

_MAX_RUNS, _MAX_MODELS = 40, 6


def playground(request: Request) -> Response:
    """`GET /playground`: `run`, `step` and `model` choose a model, `run2` and so on a second."""
    client = request.app.state.backend.client()
    first = parse_option(client, request.query_params) or _default_option(request.app.state.run_index)
    second = parse_option(client, request.query_params, "2")
    scope = client.scope
    project = f"{scope.org_slug}/{scope.project_slug}" if scope else ""
    return page("playground.html", first=first, second=second, project=project)


def _default_option(run_index: RunIndex) -> ModelOption | None:
    """Return the latest completed run, or the latest of all."""
    runs = run_index.runs()
    job = next((job for job in runs if job.status == "completed"), runs[0] if runs else None)
    return None if job is None else ModelOption(ModelTarget.of_run(job.id), job)


def choices(request: Request) -> Response:
    """`GET /parts/choices`: the runs and base models whose name, model or id contains `q`."""
    query = Query.of(request.query_params)
    runs = request.app.state.run_index.runs()
    found = query.apply(runs)
    used = (str(job.config.model) for job in runs if getattr(job.config, "model", None))
    models = [model for model in dict.fromkeys([STARTER_MODEL, *used]) if query.text.casefold() in model.casefold()]
    return page(
        "parts/choices.html",
        text=query.text,
        runs=found[:_MAX_RUNS],
        more=max(0, len(found) - _MAX_RUNS),
        models=models[:_MAX_MODELS],
    )


async def answer(request: Request) -> Response:
    """`POST /streams/answers`: stream an answer; takes the body of `POST /v1/inference/chat`."""
    inference_request = _parse_request(await request.body())
    backend: BackendClient = request.app.state.backend

    def call() -> requests.Response:
        try:
            return backend.client().chat(inference_request).raw
        except CloudApiError as error:
            if not is_unsupported_route(error):
                raise
            raise ArkorError(
                f"This backend does not know the model, or does not support chat ({error.message})."
            ) from error

    return await proxy_answer(request, call)


def _parse_request(body: bytes) -> InferenceRequest:
    """Parse and check a request. Raises `InvalidConfig`."""
    try:
        inference_request = from_wire(InferenceRequest, json.loads(body))
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise InvalidConfig("request", "must be a JSON object with `messages`") from None
    inference_request.check()
    return inference_request


async def code(request: Request) -> Response:
    """`POST /parts/code`: the same request as code; nothing is sent to the model."""
    inference_request = _parse_request(await request.body())
    return await run_in_threadpool(_code, request.app.state.backend.client, inference_request)


def _code(connect: Callable[[], CloudApiClient], request: InferenceRequest) -> Response:
    client, target = connect(), ModelTarget(request.base_model, request.adapter)
    endpoint = find_endpoint(client, target)
    address = address_of(client, endpoint) if endpoint else None
    published = []
    if endpoint and address:
        key = None if endpoint.auth_mode == "none" else snippets.KEY
        published = snippets.endpoint_snippets(address, endpoint.slug, request, key=key)
    own = snippets.backend_snippets(client, request)
    option = ModelOption(target)
    publish = {"run": option.name, "step": option.step} if target.adapter else {"model": option.name}
    return page("parts/code.html", own=own, published=published, endpoint=endpoint, publish=publish)


routes = [
    Route("/playground", playground, methods=["GET"]),
    Route("/parts/choices", choices, methods=["GET"]),
    Route("/parts/code", code, methods=["POST"]),
    Route("/streams/answers", answer, methods=["POST"]),
]
