"""Playground: a model is asked, or two side by side; what there is to choose from; the same as code."""

from __future__ import annotations

import json

import requests
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from arkor.errors import ArkorError, CloudApiError, InvalidConfig
from arkor.protocol.chat import InferenceRequest
from arkor.protocol.codec import from_wire
from arkor.settings import STARTER_MODEL
from arkor.studio import snippets
from arkor.studio.backend_client import BackendClient
from arkor.studio.deployment_urls import address_of, find_endpoint, is_unsupported_route
from arkor.studio.model_selection import ModelOption, ModelRef, parse_option
from arkor.studio.rendering import page
from arkor.studio.run_index import Query, model_of
from arkor.studio.stream_proxy import proxy_answer

_RUNS_AT_ONCE = 40
_MODELS_AT_ONCE = 6


def playground(request: Request) -> Response:
    """`GET /playground`: `run`, `step` and `model` of the address say who answers; with a 2 behind them, who else."""
    client = request.app.state.backend.client()
    first = parse_option(client, request.query_params) or _latest_completed(request)
    second = parse_option(client, request.query_params, "2")
    scope = client.scope
    project = f"{scope.org_slug}/{scope.project_slug}" if scope else ""
    return page("playground.html", first=first, second=second, project=project)


def _latest_completed(request: Request) -> ModelOption | None:
    """The latest run that has come to its end; the latest of all where none has."""
    runs = request.app.state.run_index.runs()
    job = next((job for job in runs if job.status == "completed"), runs[0] if runs else None)
    return None if job is None else ModelOption(ModelRef(job.id), job)


def choices(request: Request) -> Response:
    """`GET /parts/choices`: what can be chosen, newest first: `q` is looked for in names, models and ids."""
    query = Query.of(request.query_params)
    runs = request.app.state.run_index.runs()
    found = query.apply(runs)
    known = dict.fromkeys([STARTER_MODEL, *(str(job.config.model) for job in runs if model_of(job) != "–")])
    models = [model for model in known if query.text.casefold() in model.casefold()]
    return page(
        "parts/choices.html",
        text=query.text,
        runs=found[:_RUNS_AT_ONCE],
        more=max(0, len(found) - _RUNS_AT_ONCE),
        models=models[:_MODELS_AT_ONCE],
    )


# Asking


async def answer(request: Request) -> Response:
    """`POST /streams/answers`: one answer, as it comes. The body is that of `POST /v1/inference/chat`."""
    inference_request = _parse_request(await request.body())
    link: BackendClient = request.app.state.backend

    def call() -> requests.Response:
        try:
            return link.client().chat(inference_request).raw
        except CloudApiError as error:
            raise _explain_error(error) from error

    return await proxy_answer(request, call)


def _explain_error(error: CloudApiError) -> ArkorError:
    """A backend without this route says so in words for programs."""
    if not is_unsupported_route(error):
        return error
    return ArkorError(f"This backend has no such model, or cannot be talked to ({error.message}).")


def _parse_request(body: bytes) -> InferenceRequest:
    """Raises `InvalidConfig` for what is no request."""
    try:
        data = json.loads(body)
        inference_request = from_wire(InferenceRequest, data)
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise InvalidConfig("request", "must be a JSON object with `messages`") from None
    inference_request.check()
    return inference_request


# As code


async def code(request: Request) -> Response:
    """`POST /parts/code`: the same request as scripts and commands; nothing is asked."""
    inference_request = _parse_request(await request.body())
    return await run_in_threadpool(_code, request.app.state.backend, inference_request)


def _code(link: BackendClient, inference_request: InferenceRequest) -> Response:
    client, weights = link.client(), _model_ref(inference_request)
    endpoint = find_endpoint(client, weights)
    address = address_of(client, endpoint) if endpoint else None
    key = None if endpoint and endpoint.auth_mode == "none" else snippets.KEY
    published = (
        snippets.endpoint_snippets(address, endpoint.slug, inference_request, key=key) if endpoint and address else []
    )
    own = snippets.backend_snippets(client, inference_request)
    return page("parts/code.html", own=own, published=published, endpoint=endpoint, weights=weights)


def _model_ref(inference_request: InferenceRequest) -> ModelRef:
    adapter = inference_request.adapter
    return ModelRef(adapter.job_id, adapter.step) if adapter else ModelRef(model=inference_request.base_model)


routes = [
    Route("/playground", playground, methods=["GET"]),
    Route("/parts/choices", choices, methods=["GET"]),
    Route("/parts/code", code, methods=["POST"]),
    Route("/streams/answers", answer, methods=["POST"]),
]
