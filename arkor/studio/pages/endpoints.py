"""Endpoints: models behind an address, each with its state, its keys, and code that asks it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from arkor.client.api import CloudApiClient
from arkor.errors import ArkorError, CloudApiError, InvalidConfig
from arkor.protocol.deployments import Deployment, DeploymentKey, check_slug
from arkor.studio import snippets
from arkor.studio.deployment_urls import address_of, is_unsupported_route
from arkor.studio.model_selection import ModelOption, model_ref_of_target, option_of, parse_option
from arkor.studio.rendering import page, redirect
from arkor.studio.run_index import RunIndex

Form = Mapping[str, Any]

#: What the form calls the fields of a deployment.
_LABELS = {
    "slug": "Name",
    "auth_mode": "Who may ask",
    "run_retention_mode": "What is kept",
    "runRetentionDays": "Days",
    "run_retention_days": "Days",
    "target.baseModel": "Answers with",
    "model": "Answers with",
    "step": "Answers with",
}


def endpoints(request: Request) -> Response:  # noqa: ARG001 - the signature of a route
    """`GET /endpoints`: the page."""
    return page("endpoints.html")


def listed(request: Request) -> Response:
    """`GET /parts/endpoints`: the list."""
    client = _client(request)
    try:
        found = client.list_deployments()
    except CloudApiError as error:
        if not is_unsupported_route(error):
            raise
        return page("parts/endpoint_list.html", lacking=True, rows=[])
    names = _run_names(request.app.state.run_index)
    rows = [(one, _model(one, names), address_of(client, one)) for one in found]
    return page("parts/endpoint_list.html", lacking=False, rows=rows)


def _run_names(listing: RunIndex) -> Mapping[str, str]:
    return {job.id: job.name for job in listing.runs()}


def _model(endpoint: Deployment, names: Mapping[str, str]) -> str:
    """`"support-bot, step 20"`."""
    weights = model_ref_of_target(endpoint.target)
    if weights.job_id is None:
        return weights.model or ""
    return f"{names.get(weights.job_id, weights.job_id)}, {weights.label}"


def endpoint(request: Request) -> Response:
    """`GET /endpoints/:id`: all about one."""
    return page("endpoint.html", **_endpoint_context(_client(request), request.path_params["id"]))


def _endpoint_context(client: CloudApiClient, id_: str, made: DeploymentKey | None = None) -> dict[str, Any]:
    """What the page of an endpoint shows; `made` is a key that is shown this once."""
    found = client.get_deployment(id_)
    address = address_of(client, found)
    needed = None if found.auth_mode == "none" else made.plaintext if made and made.plaintext else snippets.KEY
    return {
        "endpoint": found,
        "choice": option_of(client, found.target),
        "address": address,
        "keys": client.list_deployment_keys(id_),
        "made": made,
        "snippets": snippets.endpoint_snippets(address, found.slug, key=needed) if address else [],
    }


# A new one


def new(request: Request) -> Response:
    """`GET /endpoints/new`: the form; `run`, `step` and `model` of the address say what is to be published."""
    client = _client(request)
    choice = parse_option(client, request.query_params) or _latest(request.app.state.run_index)
    return page("endpoint_new.html", choice=choice)


def _latest(listing: RunIndex) -> ModelOption | None:
    """The latest run that has come to its end: nothing else is meant to be published."""
    job = next((job for job in listing.runs() if job.status == "completed"), None)
    return None if job is None else parse_option(listing.backend.client(), {"run": job.id})


def slug(request: Request) -> Response:
    """`GET /parts/slug`: whether it can be had, as far as that can be known before it is tried."""
    given = request.query_params.get("slug", "").strip()
    client = _client(request)
    problem = _problem(client, given) if given else None
    return page("parts/slug.html", slug=given, problem=problem, address=_preview(client, given))


def _problem(client: CloudApiClient, given: str) -> str | None:
    try:
        check_slug(given)
    except InvalidConfig as error:
        return error.problem.split(";")[0]
    taken = any(one.slug == given for one in client.list_deployments())
    return "is taken by another endpoint of this project" if taken else None


def _preview(client: CloudApiClient, given: str) -> str | None:
    return address_of(client, Deployment("", given, {}, "none"))


async def create(request: Request) -> Response:
    """`POST /actions/endpoints`: a new one, and on to its page; what is wrong is said in the form."""

    def action(client: CloudApiClient, form: Form) -> Response:
        try:
            made = client.create_deployment(_text(form, "slug"), _target(client, form), **_settings(form))
        except (CloudApiError, InvalidConfig) as error:
            return _form_error(error)
        return redirect(f"/endpoints/{made.id}")

    return await _run_action(request, action)


def _form_error(error: ArkorError) -> Response:
    headers = {"HX-Retarget": "#form-error", "HX-Reswap": "innerHTML"}
    response = page("parts/form_error.html", 400, sentence=_form_message(error))
    response.headers.update(headers)
    return response


def _form_message(error: ArkorError) -> str:
    """What is wrong, with the field as the form calls it."""
    if isinstance(error, CloudApiError) and is_unsupported_route(error):
        return f"This backend has no endpoints ({error.message})."
    sentence = error.message if isinstance(error, CloudApiError) else str(error)
    name, colon, problem = sentence.partition(": ")
    return f"{_LABELS[name]}: {problem}" if colon and name in _LABELS else sentence


# What is asked of it


async def change(request: Request) -> Response:
    """`POST /actions/endpoints/:id`: the form names the weights, who may ask, what is kept, or whether it answers."""

    def action(client: CloudApiClient, form: Form) -> Response:
        id_ = request.path_params["id"]
        target = _target(client, form) if "model" in form or "run" in form else None
        enabled = form["enabled"] == "1" if "enabled" in form else None
        client.update_deployment(id_, target=target, enabled=enabled, **_settings(form))
        return _refreshed(client, id_)

    return await _run_action(request, action)


async def delete(request: Request) -> Response:
    """`POST /actions/endpoints/:id/delete`: gone for good; its slug must be typed."""

    def action(client: CloudApiClient, form: Form) -> Response:
        found = client.get_deployment(request.path_params["id"])
        if _text(form, "slug") != found.slug:
            raise InvalidConfig("slug", f"type {found.slug} to delete the endpoint")
        client.delete_deployment(found.id)
        return redirect("/endpoints")

    return await _run_action(request, action)


async def new_key(request: Request) -> Response:
    """`POST /actions/endpoints/:id/keys`: a key, shown this once."""

    def create(client: CloudApiClient, form: Form) -> Response:
        id_ = request.path_params["id"]
        return _refreshed(client, id_, client.create_deployment_key(id_, _text(form, "label")))

    return await _run_action(request, create)


async def revoke(request: Request) -> Response:
    """`POST /actions/endpoints/:id/keys/:key/revoke`: it opens nothing from now on."""

    def action(client: CloudApiClient, form: Form) -> Response:  # noqa: ARG001 - every action is called alike
        id_ = request.path_params["id"]
        client.revoke_deployment_key(id_, request.path_params["key"])
        return _refreshed(client, id_)

    return await _run_action(request, action)


def part(request: Request) -> Response:
    """`GET /parts/endpoints/:id`: how it stands, without a key."""
    return _refreshed(_client(request), request.path_params["id"])


def _refreshed(client: CloudApiClient, id_: str, made: DeploymentKey | None = None) -> Response:
    return page("parts/endpoint.html", **_endpoint_context(client, id_, made))


# Forms


async def _run_action(request: Request, action: Callable[[CloudApiClient, Form], Response]) -> Response:
    """Do it on a thread that may wait, with the form that came."""
    async with request.form(max_files=0, max_fields=20) as form:
        fields = dict(form)
    return await run_in_threadpool(lambda: action(_client(request), fields))


def _client(request: Request) -> CloudApiClient:
    client: CloudApiClient = request.app.state.backend.client()
    return client


def _text(form: Form, name: str) -> str:
    return str(form.get(name, "")).strip()


def _target(client: CloudApiClient, form: Form) -> dict[str, Any]:
    choice = parse_option(client, form)
    if choice is None:
        raise InvalidConfig("model", "choose a run or a model first")
    return choice.weights.target


def _settings(form: Form) -> dict[str, Any]:
    """Who may ask and how long it is kept what was asked, where the form says so. Raises `InvalidConfig`."""
    found: dict[str, Any] = {}
    if auth := _text(form, "auth_mode"):
        found["auth_mode"] = auth
    if keep := _text(form, "keep"):
        found["run_retention_mode"] = keep
    days = _text(form, "days")
    if keep == "days" and days:
        if not (days.isascii() and days.isdigit() and len(days) < 10):
            raise InvalidConfig("days", f"must be a whole number of days, not {days[:20]!r}")
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
