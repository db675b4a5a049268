"""Endpoints: the list, a form for a new one, and the page of one with its keys and code."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from arkor.client.api import CloudApiClient
from arkor.errors import CloudApiError, InvalidConfig, Problem
from arkor.protocol.deployments import MAX_RETENTION_DAYS, Deployment, DeploymentKey, check_slug
from arkor.protocol.model_target import ModelTarget
from arkor.studio import model_selection as models
from arkor.studio import snippets
from arkor.studio.backend_client import client_of
from arkor.studio.rendering import form_message, page, redirect

Form = Mapping[str, Any]


def endpoints(request: Request) -> Response:  # noqa: ARG001 - the signature of a route
    return page("endpoints.html")


def listed(request: Request) -> Response:
    client = client_of(request)
    try:
        found = client.list_deployments()
    except CloudApiError as error:
        if not models.is_unsupported_route(error):
            raise
        return page("parts/endpoint_list.html", lacking=True, rows=[])
    names = {job.id: job.name for job in request.app.state.run_index.runs()}
    rows = [(item, _model(models.target_of(item), names), models.address_of(client, item)) for item in found]
    return page("parts/endpoint_list.html", lacking=False, rows=rows)


def _model(target: ModelTarget, names: Mapping[str, str]) -> str:
    """Describe a model (`"support-bot, step 20"`)."""
    if target.menu is not None:
        return "a model menu"
    if target.adapter is None:
        return target.base_model or ""
    return f"{names.get(target.adapter.job_id, target.adapter.job_id)}, {models.ModelOption(target).weights}"


def endpoint(request: Request) -> Response:
    return page("endpoint.html", **_endpoint_context(request))


def _endpoint_context(request: Request, made: DeploymentKey | None = None) -> dict[str, Any]:
    client = client_of(request)
    found = client.get_deployment(request.path_params["id"])
    address = models.address_of(client, found)
    key = None if found.auth_mode == "none" else made.plaintext if made and made.plaintext else snippets.KEY
    return {
        "endpoint": found,
        "choice": models.option_of(client, found),
        "address": address,
        "keys": client.list_deployment_keys(found.id),
        "made": made,
        "snippets": snippets.endpoint_snippets(address, found.slug, key=key) if address else [],
    }


def new(request: Request) -> Response:
    """`GET /endpoints/new`: the form; `run`, `step` and `model` of the URL choose the model."""
    runs = request.app.state.run_index.runs()
    choice = models.parse_option(client_of(request), request.query_params) or models.latest_option(runs)
    return page("endpoint_new.html", choice=choice)


def slug(request: Request) -> Response:
    """`GET /parts/slug`: whether a slug is valid and not used in this project."""
    given = request.query_params.get("slug", "").strip()
    client = client_of(request)
    problem = _slug_problem(client, given) if given else None
    address = models.address_of(client, Deployment("", given, {}, "none"))
    return page("parts/slug.html", slug=given, problem=problem, address=address)


def _slug_problem(client: CloudApiClient, given: str) -> str | None:
    try:
        check_slug(given)
    except InvalidConfig as error:
        return str(Problem(error.problem, remedy=error.remedy))
    is_taken = any(item.slug == given for item in client.list_deployments())
    return f"“{given}” is used by another endpoint of this project" if is_taken else None


def form_action(
    action: Callable[[Request, CloudApiClient, Form], Response],
) -> Callable[[Request], Awaitable[Response]]:
    """Turn a blocking function into a route that passes it the client and the fields of the form."""

    async def route(request: Request) -> Response:
        async with request.form(max_files=0, max_fields=20) as form:
            fields = dict(form)
        return await run_in_threadpool(lambda: action(request, client_of(request), fields))

    return route


@form_action
def create(request: Request, client: CloudApiClient, form: Form) -> Response:  # noqa: ARG001 - an action's signature
    """`POST /actions/endpoints`: create an endpoint and open its page; show errors in the form."""
    try:
        made = client.create_deployment(_text(form, "slug"), _target(client, form), **_settings(form))
    except (CloudApiError, InvalidConfig) as error:
        is_unsupported = isinstance(error, CloudApiError) and models.is_unsupported_route(error)
        message = f"This backend has no endpoints ({error.problem})." if is_unsupported else form_message(error)
        response = page("parts/form_error.html", 400, sentence=message)
        response.headers.update({"HX-Retarget": "#form-error", "HX-Reswap": "innerHTML"})
        return response
    return redirect(f"/endpoints/{made.id}")


@form_action
def change(request: Request, client: CloudApiClient, form: Form) -> Response:
    """`POST /actions/endpoints/:id`: change the model or the settings that the form contains."""
    target = _target(client, form) if "model" in form or "run" in form else None
    enabled = form["enabled"] == "1" if "enabled" in form else None
    client.update_deployment(request.path_params["id"], target=target, enabled=enabled, **_settings(form))
    return part(request)


@form_action
def delete(request: Request, client: CloudApiClient, form: Form) -> Response:
    """`POST /actions/endpoints/:id/delete`: delete the endpoint; the form must contain its slug."""
    found = client.get_deployment(request.path_params["id"])
    if _text(form, "slug") != found.slug:
        raise InvalidConfig("slug", f"type {found.slug} to delete the endpoint")
    client.delete_deployment(found.id)
    return redirect("/endpoints")


@form_action
def new_key(request: Request, client: CloudApiClient, form: Form) -> Response:
    """`POST /actions/endpoints/:id/keys`: create a key and show it this once."""
    made = client.create_deployment_key(request.path_params["id"], _text(form, "label"))
    return part(request, made)


@form_action
def revoke(request: Request, client: CloudApiClient, form: Form) -> Response:  # noqa: ARG001 - an action's signature
    client.revoke_deployment_key(request.path_params["id"], request.path_params["key"])
    return part(request)


def part(request: Request, made: DeploymentKey | None = None) -> Response:
    """`GET /parts/endpoints/:id`: the endpoint; `made` is a new key, which is shown this once."""
    return page("parts/endpoint.html", **_endpoint_context(request, made))


def _text(form: Form, name: str) -> str:
    return str(form.get(name, "")).strip()


def _target(client: CloudApiClient, form: Form) -> dict[str, Any]:
    choice = models.parse_option(client, form)
    if choice is None:
        raise InvalidConfig("model", "choose a run or a model")
    return choice.target.to_wire()


def _settings(form: Form) -> dict[str, Any]:
    """Return the access and retention settings of the form. Raises `InvalidConfig`."""
    found: dict[str, Any] = {}
    if auth := _text(form, "auth_mode"):
        found["auth_mode"] = auth
    if keep := _text(form, "keep"):
        found["run_retention_mode"] = keep
    days = _text(form, "days")
    if keep == "days" and days:
        if not (days.isascii() and days.isdigit() and len(days) < 10):
            raise InvalidConfig("days", f"must be a whole number of days, not {days[:20]!r}")
        if int(days) > MAX_RETENTION_DAYS:
            raise InvalidConfig("days", f"must be at most {MAX_RETENTION_DAYS}")
        found["run_retention_days"] = int(days)
    return found


routes = [
    Route("/endpoints", endpoints, methods=["GET"]),
    Route("/endpoints/new", new, methods=["GET"]),
    Route("/endpoints/{id}", endpoint, methods=["GET"]),
    Route("/parts/endpoints", listed, methods=["GET"]),
    Route("/parts/endpoints/{id}", part, methods=["GET"]),
    Route("/parts/slug", slug, methods=["GET"]),
    Route("/actions/endpoints", create, methods=["POST"]),
    Route("/actions/endpoints/{id}", change, methods=["POST"]),
    Route("/actions/endpoints/{id}/delete", delete, methods=["POST"]),
    Route("/actions/endpoints/{id}/keys", new_key, methods=["POST"]),
    Route("/actions/endpoints/{id}/keys/{key}/revoke", revoke, methods=["POST"]),
]
